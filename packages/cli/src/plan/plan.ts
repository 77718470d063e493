import { ConfigError } from "@triattn/control";
import type { Gpu } from "./gpus.ts";
import { divide, kvBytes, type Memory, type MemoryOptions } from "./memory.ts";
import type { Model } from "./model.ts";
import { roundMs, stepMs, work } from "./roofline.ts";

export interface PlanOptions extends MemoryOptions {
  /** Tokens that a request grows to, its prompt included. */
  readonly context: number;
  /** Requests that ask at once. */
  readonly concurrency: number;
  /** Budgets to show; none: those around the recommended one. */
  readonly budgets: readonly number[];
  readonly interval: number;
  readonly blockSize: number;
}

export interface PlanRow {
  /** Null: full KV. */
  readonly budget: number | null;
  /** KV of one request at its longest, in bytes. */
  readonly kvBytesPerRequest: number;
  /** Requests of the longest size that fit at once: with so many nobody is ever preempted. */
  readonly fit: number;
  /** Requests that run at once, of those that ask; with full KV at every age, so more than fit at their longest. */
  readonly running: number;
  /** Mean resident tokens of a running request. */
  readonly meanResident: number;
  /** Null where the GPU's bandwidth is not known. */
  readonly stepMs: number | null;
  readonly tokensPerSecond: number | null;
  readonly timesFull: number | null;
}

export interface Plan {
  readonly model: Model;
  readonly gpu: Gpu;
  readonly options: PlanOptions;
  readonly memory: Memory;
  readonly rows: readonly PlanRow[];
  readonly recommended: { readonly budget: number | null; readonly reason: string };
}

/** Budgets that are recommended are multiples of this. */
const GRAIN = 128;
/** Below this policies have little left to choose from beside window and sinks. */
const LEAST_BUDGET = 256;
/** A steady state with full KV fills the cache to about this much, as `triattn bench engine` has it. */
const FILLED = 0.97;
const LADDER = [16384, 8192, 4096, 2048, 1024, 512];

const blocks = (tokens: number, size: number) => Math.ceil(tokens / size) * size;

/** Sizes, times and a budget for a model on a GPU. Throws ConfigError when nothing can run. */
export function makePlan(model: Model, gpu: Gpu, options: PlanOptions): Plan {
  if (options.context > model.maxPositions) {
    throw new ConfigError(
      "--context",
      options.context,
      `at most max_position_embeddings = ${model.maxPositions} of ${model.name}`,
    );
  }
  const memory = divide(model, gpu, options);
  const full = fullRow(model, gpu, memory, options);
  const recommended = recommend(model, full, memory, options);
  const wanted =
    options.budgets.length > 0
      ? options.budgets
      : [...new Set([...(recommended.budget === null ? [] : [recommended.budget]), ...LADDER])].sort(
          (a, b) => b - a,
        );
  const shown = wanted.filter((budget) => budget + options.interval < options.context);
  const rows =
    model.refused !== null ? [] : shown.map((budget) => budgetRow(model, gpu, memory, options, budget, full));
  return { model, gpu, options, memory, rows: [full, ...rows], recommended };
}

function fullRow(model: Model, gpu: Gpu, memory: Memory, options: PlanOptions): PlanRow {
  const { context, concurrency, blockSize } = options;
  const longest = blocks(context, blockSize);
  const fit = Math.floor(memory.cacheBytes / kvBytes(model, memory, longest));
  const mean = context / 2;
  const steady = Math.floor((memory.cacheBytes * FILLED) / kvBytes(model, memory, mean));
  const running = Math.min(concurrency, memory.maxRequests, fit === 0 ? 0 : Math.max(steady, fit));
  const batch = { requests: running, tokens: mean, ragged: true };
  const ms = stepMs(work(model, gpu, memory, batch, options.tensorParallel), true);
  return {
    budget: null,
    kvBytesPerRequest: kvBytes(model, memory, longest),
    fit,
    running,
    meanResident: mean,
    ...speed(running, ms, null),
  };
}

/** What a budget holds and how fast it decodes. */
export function budgetRow(
  model: Model,
  gpu: Gpu,
  memory: Memory,
  options: PlanOptions,
  budget: number,
  full: PlanRow,
): PlanRow {
  const { context, concurrency, interval, blockSize } = options;
  const longest = blocks(budget + interval, blockSize);
  const fit = Math.floor(memory.cacheTokensCompressed / longest);
  const running = Math.min(concurrency, memory.maxRequests, fit);
  // A request grows to its budget once and then swings between it and a round.
  const growing = Math.min(1, budget / context);
  const mean = growing * (budget / 2) + (1 - growing) * (budget + interval / 2);
  const batch = { requests: running, tokens: mean, ragged: false };
  const decode = stepMs(work(model, gpu, memory, batch, options.tensorParallel), false);
  const rounds = ((1 - growing) * running) / interval;
  const ms = decode + rounds * roundMs(model, gpu, memory, { budget, interval, readsKeys: true });
  return {
    budget,
    kvBytesPerRequest: kvBytes(model, memory, longest),
    fit,
    running,
    meanResident: Math.round(mean),
    ...speed(running, ms, full.tokensPerSecond),
  };
}

function speed(running: number, ms: number, full: number | null) {
  const known = Number.isFinite(ms) && running > 0;
  const tokensPerSecond = known ? (1e3 * running) / ms : null;
  return {
    stepMs: known ? ms : null,
    tokensPerSecond,
    timesFull: tokensPerSecond === null || full === null || full === 0 ? null : tokensPerSecond / full,
  };
}

/** The largest budget with which every request that asks stays resident: nobody waits, nobody is preempted. */
function recommend(model: Model, full: PlanRow, memory: Memory, options: PlanOptions): Plan["recommended"] {
  const { concurrency, context, interval, blockSize } = options;
  if (model.refused !== null) return { budget: null, reason: model.refused };
  const requests = Math.min(concurrency, memory.maxRequests);
  if (full.fit >= requests) {
    return {
      budget: null,
      reason: `full KV of ${requests} requests of ${context} tokens fits; a budget would only shorten the step`,
    };
  }
  const room = Math.floor(memory.cacheTokensCompressed / requests);
  const budget = Math.floor((Math.floor(room / blockSize) * blockSize - interval) / GRAIN) * GRAIN;
  if (budget < LEAST_BUDGET) {
    const most = Math.floor(memory.cacheTokensCompressed / blocks(LEAST_BUDGET + interval, blockSize));
    return {
      budget: null,
      reason: `${requests} requests at once leave each less than ${LEAST_BUDGET} tokens; at most ${most} could run`,
    };
  }
  return {
    budget,
    reason: `the largest with which ${requests} requests of up to ${context} tokens all stay resident`,
  };
}
