import type { Gpu } from "./gpus.ts";
import { kvBytes, type Memory, weightBytes } from "./memory.ts";
import type { Model } from "./model.ts";

/**
 * Fitted by `node --import tsx scripts/fit-roofline.ts` to decode steps of Qwen3-8B measured on one H200 with vLLM
 * 0.26.0 (docs/benchmarks/vllm-h200.json, vllm-h200-steps.json); a test holds these numbers to the fit.
 */
export const roofline = {
  /** Of the memory's data sheet bandwidth: weights, and KV of requests of about one length. */
  bandwidth: 1,
  /** The same for KV of requests of every length at once: attention waits for the longest. */
  raggedBandwidth: 0.89,
  /** Of the data sheet's dense bfloat16 operations, when the batch makes matrix products the limit. */
  compute: 0.51,
  /** Launches and small kernels of a step, milliseconds a layer: they do not depend on the batch. */
  layerMs: 0.084,
  /** Of the bandwidth, by the rounds of a step. */
  roundBandwidth: 0.48,
} as const;

export type Constants = { readonly [K in keyof typeof roofline]: number };

export interface Batch {
  readonly requests: number;
  /** Mean resident tokens of a request. */
  readonly tokens: number;
  /** Whether requests of every length run together, as they do without a budget. */
  readonly ragged: boolean;
}

/** A step's parts in their natural units, before any efficiency: what the fit takes its unknowns from. */
export interface Work {
  /** Seconds at the data sheet's bandwidth. */
  readonly weights: number;
  readonly kv: number;
  /** Seconds at the data sheet's operations. */
  readonly compute: number;
  readonly layers: number;
}

/** What one decode step of a batch moves and computes, on one GPU of `ranks`. */
export function work(model: Model, gpu: Gpu, memory: Memory, batch: Batch, ranks = 1): Work {
  const { total, lookedUp, dense, experts, activeShare } = model.parameters;
  const bytesPerWeight = weightBytes(model) / total;
  // Tokens choose experts independently enough: the part of the experts that nobody chose is not read.
  const touched = experts * (1 - (1 - activeShare) ** batch.requests);
  const used = (dense + touched) * bytesPerWeight;
  const kv = batch.requests * kvBytes(model, memory, batch.tokens);
  const operations = 2 * (dense + experts * activeShare) * batch.requests;
  return {
    weights: Math.min(used, (total - lookedUp) * bytesPerWeight) / ranks / (gpu.bandwidth ?? Number.NaN),
    kv: kv / (gpu.bandwidth ?? Number.NaN),
    compute: operations / ranks / (gpu.flops ?? Number.NaN),
    layers: model.layers,
  };
}

/** Milliseconds of a decode step. NaN where the GPU's bandwidth is not known. */
export function stepMs(
  { weights, kv, compute, layers }: Work,
  ragged: boolean,
  c: Constants = roofline,
): number {
  const products = Math.max(weights / c.bandwidth, compute / c.compute);
  return layers * c.layerMs + 1e3 * (products + kv / (ragged ? c.raggedBandwidth : c.bandwidth));
}

/** Milliseconds that one round of one request adds: K read once, the kept entries of the tail read and written. */
export function roundMs(
  model: Model,
  gpu: Gpu,
  memory: Memory,
  round: { readonly budget: number; readonly interval: number; readonly readsKeys: boolean },
  c: Constants = roofline,
): number {
  const keys = round.readsKeys ? kvBytes(model, memory, round.budget + round.interval) / 2 : 0;
  const moved = 2 * kvBytes(model, memory, round.interval);
  return (1e3 * (keys + moved)) / ((gpu.bandwidth ?? Number.NaN) * c.roundBandwidth);
}
