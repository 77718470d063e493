import type { ApiEngine, ApiState } from "@triattn/protocol";
import { toNumber } from "../lib/format.ts";
import { History, Rate, type Sample } from "../lib/history.ts";

/** Over how many seconds rates are taken. */
const RATE_WINDOW = 10;
const SLOW_WINDOW = 15;

/** What is derived from the counters of one engine. */
class EngineTelemetry {
  readonly history = new History();
  readonly rounds = new Rate(RATE_WINDOW);
  readonly evicted = new Rate(RATE_WINDOW);
  readonly stall = new Rate(SLOW_WINDOW);
}

export interface Rates {
  readonly rounds: number | null;
  readonly evicted: number | null;
  /** Share of the time that running requests waited for rounds, 0 … 1. */
  readonly stall: number | null;
}

/** The last ten minutes, by engine and over all of them, since the page was opened. */
export class Telemetry {
  readonly all = new History();
  readonly #engines = new Map<string, EngineTelemetry>();

  /** `fullKv`: tokens without compression, by engine, where known. */
  add(state: ApiState, fullKv: ReadonlyMap<string, number>): void {
    const time = Date.parse(state.time) / 1000;
    if (Number.isNaN(time)) return;
    const live = state.engines.filter(({ connected, counters }) => connected && counters !== null);
    const now = live.map((engine) => this.#take(engine, time, fullKv.get(engine.engineId) ?? null));
    const blocks = live.reduce((sum, { cache }) => sum + cache.blocks, 0);
    const used = live.reduce((sum, { counters }) => sum + (counters?.usedBlocks ?? 0), 0);
    const total = (pick: (sample: Sample) => number | null): number | null =>
      now.reduce<number | null>((sum, sample) => {
        const value = pick(sample);
        return sum === null || value === null ? null : sum + value;
      }, 0);
    this.all.add(time, {
      resident: total((s) => s.resident) ?? 0,
      fullKv: now.length === 0 ? null : total((s) => s.fullKv),
      cacheUse: blocks > 0 ? (100 * used) / blocks : 0,
      tokensPerSecond: total((s) => s.tokensPerSecond) ?? 0,
      roundsPerSecond: now.length === 0 ? null : total((s) => s.roundsPerSecond),
      running: total((s) => s.running) ?? 0,
      waiting: total((s) => s.waiting) ?? 0,
    });
  }

  /** The charts' data of an engine, or of all. */
  history(engineId: string | null): History {
    return (engineId === null ? undefined : this.#engines.get(engineId)?.history) ?? this.all;
  }

  /** Rates summed over engines; the stall share is that of the engine that waits most. */
  rates(engineIds: readonly string[]): Rates {
    const engines = engineIds.flatMap((id) => this.#engines.get(id) ?? []);
    const values = (pick: (engine: EngineTelemetry) => Rate) =>
      engines.flatMap((engine) => pick(engine).value ?? []);
    const sum = (all: number[]) => (all.length === 0 ? null : all.reduce((a, b) => a + b, 0));
    const stall = values((e) => e.stall);
    return {
      rounds: sum(values((e) => e.rounds)),
      evicted: sum(values((e) => e.evicted)),
      stall: stall.length === 0 ? null : Math.max(...stall),
    };
  }

  #take(
    { engineId, counters, cache, tokensPerSecond }: ApiEngine,
    time: number,
    full: number | null,
  ): Sample {
    const engine = this.#engines.get(engineId) ?? new EngineTelemetry();
    this.#engines.set(engineId, engine);
    if (counters === null) throw new Error("an engine without counters has no sample");
    engine.rounds.add(time, toNumber(counters.rounds));
    engine.evicted.add(time, toNumber(counters.tokensEvicted));
    engine.stall.add(time, counters.stallSeconds);
    const sample: Sample = {
      resident: counters.residentTokens,
      fullKv: full,
      cacheUse: cache.blocks > 0 ? (100 * counters.usedBlocks) / cache.blocks : 0,
      tokensPerSecond,
      roundsPerSecond: engine.rounds.value,
      running: counters.running,
      waiting: counters.waiting,
    };
    engine.history.add(time, sample);
    return sample;
  }
}
