import { setTimeout as sleep } from "node:timers/promises";
import { complete, type Job, type Sample } from "./client.ts";

export interface LoadOptions {
  readonly url: string;
  readonly model: string;
  readonly requests: number;
  /** Most requests at once. */
  readonly concurrency: number;
  /** Requests a second, at random moments (Poisson); undefined: as fast as the concurrency lets them. */
  readonly rate: number | undefined;
  readonly promptTokens: number;
  readonly maxTokens: number;
  readonly ignoreEos: boolean;
  readonly budget: number | undefined;
  readonly engine: "vllm" | "sglang";
  /** Ids of prompt tokens are below this. */
  readonly vocabulary: number;
  readonly seed: number;
  readonly signal: AbortSignal;
  readonly onDone?: (done: number, failed: number) => void;
}

export interface Outcome {
  readonly samples: readonly Sample[];
  /** What went wrong, once for each failed request. */
  readonly failures: readonly string[];
  readonly seconds: number;
}

/** Ids that are letters and words in any vocabulary, not the control tokens at its beginning. */
const FIRST_ID = 100;

/** Pseudo-random numbers in [0, 1) (mulberry32): the same load for the same seed. */
export function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Sends a load and waits for every answer. */
export async function drive(options: LoadOptions): Promise<Outcome> {
  const { requests, concurrency, rate, promptTokens, vocabulary, signal } = options;
  const random = generator(options.seed);
  const jobs = Array.from({ length: requests }, (): Job => {
    const id = () => FIRST_ID + Math.floor(random() * (vocabulary - FIRST_ID));
    const prompt = Array.from({ length: promptTokens }, id);
    const { maxTokens, ignoreEos, budget, engine } = options;
    return { prompt, maxTokens, ignoreEos, budget, engine };
  });
  let due = 0;
  const arrivals = jobs.map(() => {
    if (rate !== undefined) due += (-Math.log(1 - random()) / rate) * 1000;
    return due;
  });
  const samples: Sample[] = [];
  const failures: string[] = [];
  const start = performance.now();
  let next = 0;
  const worker = async () => {
    for (let at = next++; at < jobs.length && !signal.aborted; at = next++) {
      const wait = (arrivals[at] ?? 0) - (performance.now() - start);
      if (wait > 0) await sleep(wait, undefined, { signal }).catch(() => {});
      try {
        samples.push(await complete(options.url, options.model, jobs[at] as Job, signal));
      } catch (error) {
        failures.push(error instanceof Error ? error.message : String(error));
      }
      options.onDone?.(samples.length + failures.length, failures.length);
    }
  };
  await Promise.all(Array.from({ length: Math.min(concurrency, requests) }, worker));
  signal.throwIfAborted();
  return { samples, failures, seconds: (performance.now() - start) / 1000 };
}
