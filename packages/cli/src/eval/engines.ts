import { readdirSync, statSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { ConfigError } from "@triattn/control";
import { backendOf } from "../serve/backends.ts";
import { engineFlagValues } from "../serve/flags.ts";
import { findEngine } from "../serve/python.ts";
import type { Arm } from "./arms.ts";
import { type EngineNeeds, requestBytes } from "./backend.ts";
import { evalBackend } from "./backends.ts";
import { type EngineOptions, EvalEngine, type Outcome } from "./engine.ts";
import type { Item, Tokenizer } from "./task.ts";

export interface GroupOptions extends Omit<EngineOptions, "concurrency"> {
  /** Requests of an arm. */
  readonly requests: number;
  /** As asked for; undefined: what suits the machine. */
  readonly engines: number | undefined;
  readonly concurrency: number | undefined;
}

/** How many engines, and requests at once in each. */
export interface Layout {
  readonly engines: number;
  readonly each: number;
}

/** Steps of a small model on a CPU are one core's work, whatever the threads: two engines use two cores. */
const SMALL_MODEL = 2 ** 29;
/** Fewer requests are done before a second engine has started. */
const MANY = 32;
const CONCURRENCY = 64;
const MOST_CONCURRENCY = 256;
/** On a CPU: bytes of KV in which more requests than usual may lie whole. */
const KV_BYTES = 2 ** 32;

function weightBytes(model: string): number {
  try {
    const weights = readdirSync(model).filter((name) => name.endsWith(".safetensors"));
    return weights.length === 0
      ? Number.POSITIVE_INFINITY
      : weights.reduce((sum, name) => sum + statSync(join(model, name)).size, 0);
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}

/** Throws ConfigError where several engines would have to share an address. */
export function layout(
  options: Pick<GroupOptions, "model" | "backend" | "flags" | "requests" | "engines" | "concurrency"> &
    Pick<EngineNeeds, "profile" | "longest">,
  cpu: boolean,
  cores: number = availableParallelism(),
): Layout {
  const { model, backend, flags, profile, longest, requests, engines: asked } = options;
  const own = ["port", "uds"].find((flag) => engineFlagValues(flags).has(flag));
  if (own !== undefined && (asked ?? 1) > 1) {
    throw new ConfigError("--engines", asked, `1 beside an engine's own --${own}, or no --${own}`);
  }
  const suits =
    cpu && own === undefined && cores > 1 && requests >= MANY && weightBytes(model) <= SMALL_MODEL;
  const engines = asked ?? (suits ? evalBackend(backend).enginesOnCpu : 1);
  if (profile === "score") return { engines, each: 1 };
  const bytes = cpu ? requestBytes(model, longest) : undefined;
  const fit = bytes === undefined ? CONCURRENCY : Math.floor(KV_BYTES / bytes);
  const most = options.concurrency ?? Math.min(MOST_CONCURRENCY, Math.max(CONCURRENCY, fit));
  return { engines, each: Math.max(1, Math.ceil(Math.min(most, requests) / engines)) };
}

/** Engines beside one another that do an arm's requests together, all under the same policy. */
export class EngineGroup {
  readonly #engines: readonly EvalEngine[];
  /** Requests that each one has now. */
  readonly #running: number[];
  /** Requests at once, of all of them. */
  readonly concurrency: number;

  private constructor(engines: readonly EvalEngine[], each: number) {
    this.#engines = engines;
    this.#running = engines.map(() => 0);
    this.concurrency = engines.length * each;
  }

  /** Starts engines that use the policy of `first`. Throws what serving throws; then none is left running. */
  static async start(options: GroupOptions, first: Arm): Promise<EngineGroup> {
    const found = await findEngine(options.python, process.env, backendOf(options.backend));
    const cpu = evalBackend(options.backend).onCpu(found, options.flags, process.env);
    const { engines: count, each } = layout(options, cpu);
    const starting = Array.from({ length: count }, () =>
      EvalEngine.start({ ...options, concurrency: each }, first),
    );
    const settled = await Promise.allSettled(starting);
    const engines = settled.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
    const failed = settled.find((result) => result.status === "rejected");
    if (failed !== undefined) {
      await Promise.all(engines.map((engine) => engine.stop()));
      throw failed.reason;
    }
    return new EngineGroup(engines, each);
  }

  get #first(): EvalEngine {
    return this.#engines[0] as EvalEngine;
  }

  /** The model's tokenizer, as the engine has it. */
  get tokenizer(): Tokenizer {
    return this.#first.tokenizer;
  }

  /** Tokens of a block, the least that a budget is made of. */
  get blockSize(): number {
    return this.#first.blockSize;
  }

  /** Name, version and runner of the engine, and how many there are beside one another where it is not one. */
  get description(): { name: string; version: string; runner: string; count?: number } {
    const count = this.#engines.length;
    return { ...this.#first.description, ...(count > 1 ? { count } : {}) };
  }

  get preemptions(): number {
    return this.#engines.reduce((sum, engine) => sum + engine.preemptions, 0);
  }

  /** Puts an arm's policy in force. Throws PolicyRefused when an engine cannot carry it out. */
  async use(arm: Arm): Promise<void> {
    await Promise.all(this.#engines.map((engine) => engine.use(arm)));
  }

  /** One request, by the engine that has the fewest. Rejects with EngineDied when it dies before it answers. */
  async request(item: Item, budget: number): Promise<Outcome> {
    const index = this.#running.indexOf(Math.min(...this.#running));
    const count = (change: number) => {
      this.#running[index] = (this.#running[index] as number) + change;
    };
    count(1);
    try {
      return await (this.#engines[index] as EvalEngine).request(item, budget);
    } finally {
      count(-1);
    }
  }

  async stop(): Promise<void> {
    await Promise.all(this.#engines.map((engine) => engine.stop()));
  }
}
