import { ConfigError } from "@triattn/control";
import type { Gpu } from "./gpus.ts";
import { type Model, weightDtypes } from "./model.ts";

/** Bytes of one element of the KV cache. `fp8` is e4m3. */
export const kvDtypes = { bfloat16: 2, float16: 2, float32: 4, fp8: 1 } as const;
export type KvDtype = keyof typeof kvDtypes;

const SIXTEEN_BITS = 2;
/** vLLM's own bounds: a card of so much memory gets longer steps and more requests. */
const LARGE_CARD = 70 * 2 ** 30;
/** CUDA context, graphs, NCCL and the like: what is left unexplained of the measured cache on an H200. */
const RUNTIME_BYTES = 0.8 * 2 ** 30;
/** What triattn keeps beside each entry of a KV head: its position, int32. */
const POSITION_BYTES = 4;

export interface Memory {
  /** Of one GPU, as all of these. */
  readonly totalBytes: number;
  readonly usableBytes: number;
  readonly weightBytes: number;
  /** Activations at the largest step, the sampler's logits, the CUDA runtime; estimated. */
  readonly engineBytes: number;
  readonly cacheBytes: number;
  /** KV of one token in one layer. */
  readonly kvBytesPerLayer: number;
  /** Tokens of full KV that the cache holds, while they are inside every layer's window. */
  readonly cacheTokens: number;
  /** The same with triattn's table of positions beside it. */
  readonly cacheTokensCompressed: number;
  readonly maxRequests: number;
}

/** Bytes of the weights as stored. */
export function weightBytes(model: Model): number {
  if (model.fileBytes !== null) return model.fileBytes;
  const { total, experts, embeddings } = model.parameters;
  const each = weightDtypes[model.dtype];
  if (each >= SIXTEEN_BITS) return total * each;
  const quantised = model.dtype === "mxfp4" && experts > 0 ? experts : total - embeddings;
  return quantised * each + (total - quantised) * SIXTEEN_BITS;
}

export interface MemoryOptions {
  readonly kvDtype: KvDtype;
  /** vLLM's --gpu-memory-utilization. */
  readonly utilization: number;
  readonly tensorParallel: number;
}

/** How one GPU's memory is divided. Throws ConfigError when the weights leave nothing for a cache. */
export function divide(model: Model, gpu: Gpu, options: MemoryOptions): Memory {
  const { kvDtype, utilization, tensorParallel: ranks } = options;
  const item = kvDtypes[kvDtype];
  // A rank has at least one KV head.
  const heads = Math.max(1, model.kvHeads / ranks);
  const entry = 2 * model.headDim * item;
  const kvBytesPerLayer = heads * entry;
  const large = gpu.memoryBytes >= LARGE_CARD;
  const steps = large ? 8192 : 2048;
  const maxRequests = large ? 1024 : 256;
  const activations =
    steps *
    ((3 * model.intermediate + model.queryHeads * model.headDim) / ranks + 4 * model.hidden) *
    SIXTEEN_BITS;
  const logits = 2 * Math.min(maxRequests, 384) * model.vocabulary * 4;
  const engineBytes = RUNTIME_BYTES + activations + logits;
  const usableBytes = gpu.memoryBytes * utilization;
  const weights = weightBytes(model) / ranks;
  const cacheBytes = usableBytes - weights - engineBytes;
  if (cacheBytes <= 0) {
    const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
    throw new ConfigError(
      "--vram",
      gib(gpu.memoryBytes),
      `the weights take ${gib(weights)} and the engine about ${gib(engineBytes)} of it, so no cache is left: ` +
        "a larger or a second GPU (--tensor-parallel), or smaller weights (--weights-dtype fp8)",
    );
  }
  const cacheTokens = Math.floor(cacheBytes / (model.layers * kvBytesPerLayer));
  return {
    totalBytes: gpu.memoryBytes,
    usableBytes,
    weightBytes: weights,
    engineBytes,
    cacheBytes,
    kvBytesPerLayer,
    cacheTokens,
    cacheTokensCompressed: Math.floor((cacheTokens * entry) / (entry + POSITION_BYTES)),
    maxRequests,
  };
}

/** KV of a request of `tokens` resident tokens; a layer with a window keeps no more than that. */
export function kvBytes(model: Model, memory: Pick<Memory, "kvBytesPerLayer">, tokens: number): number {
  const kept = model.windows.reduce<number>((sum, window) => sum + Math.min(window ?? tokens, tokens), 0);
  return kept * memory.kvBytesPerLayer;
}
