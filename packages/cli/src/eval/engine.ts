import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import type { EngineEvent } from "@triattn/protocol";
import { prepare } from "../serve/prepare.ts";
import { findEngine } from "../serve/python.ts";
import { type Served, start } from "../serve/serve.ts";
import type { Arm } from "./arms.ts";
import { complete, tokenizerOf } from "./client.ts";
import type { Item, Profile, Reply, Tokenizer } from "./task.ts";

/** What one request went through. */
export interface Outcome {
  readonly reply: Reply;
  readonly rounds: number;
  readonly tokensEvicted: number;
  readonly seconds: number;
  /** When its answer was there, by `performance.now()`; what the engine says of it comes a little later. */
  readonly answered: number;
}

export interface EngineOptions {
  readonly model: string;
  readonly python?: string | undefined;
  readonly profile: Profile;
  /** Requests at once. */
  readonly concurrency: number;
  readonly interval: number;
  /** Longest request; null: the model's own limit. */
  readonly longest: number | null;
  /** The engine's own flags; they come last, so that they win. */
  readonly flags: readonly string[];
  readonly onLine: (line: string) => void;
  readonly onStart: (served: Served) => void;
}

type Finish = Extract<EngineEvent, { kind: "finish" }>;

const SERVED = "evaluated";
const CPU_BLOCK = 32;
const EVENT_MS = 10_000;

/** Bytes of KV of one token in float32, by the model's own configuration; undefined where that is not at hand. */
function tokenBytes(model: string): number | undefined {
  try {
    const config = JSON.parse(readFileSync(join(model, "config.json"), "utf8"));
    const { num_hidden_layers: layers, num_attention_heads: heads, hidden_size: hidden } = config;
    const { num_key_value_heads: kvHeads = heads, head_dim: dim = hidden / heads } = config;
    const bytes = layers * kvHeads * dim * 2 * 4;
    return Number.isFinite(bytes) ? bytes : undefined;
  } catch {
    return undefined;
  }
}

/** Flags for a CPU: a small block, and a cache in which every request of the full arm fits whole. */
function cpuFlags({ model, concurrency, longest }: EngineOptions): string[] {
  const bytes = tokenBytes(model);
  const tokens = concurrency * (Math.ceil((longest ?? 4096) / CPU_BLOCK) + 2) * CPU_BLOCK;
  const cache = Math.max(2 ** 27, bytes === undefined ? 2 ** 30 : bytes * tokens);
  return [
    ...["--enforce-eager", "--dtype", "float32", "--block-size", String(CPU_BLOCK)],
    ...["--kv-cache-memory-bytes", String(cache)],
  ];
}

function engineFlags(options: EngineOptions, cpu: boolean): string[] {
  const { profile, concurrency, interval, longest } = options;
  return [
    ...["--port", "0", "--host", "127.0.0.1", "--served-model-name", SERVED],
    // An arm must not find what another one computed.
    "--no-enable-prefix-caching",
    // Nor a model its own idea of sampling.
    ...["--generation-config", "vllm"],
    ...["--max-num-seqs", String(concurrency)],
    ...(longest === null ? [] : ["--max-model-len", String(longest)]),
    // A round fires between chunks: one interval each, as while decoding.
    ...(profile === "score" ? ["--max-num-batched-tokens", String(Math.max(interval, concurrency))] : []),
    ...(cpu ? cpuFlags(options) : []),
    ...options.flags,
  ];
}

function cpuEnvironment({ OMP_NUM_THREADS }: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return {
    OMP_NUM_THREADS: OMP_NUM_THREADS ?? String(Math.max(1, Math.floor(availableParallelism() / 2))),
    VLLM_CPU_OMP_THREADS_BIND: "nobind",
  };
}

/** A real engine under a control plane, for one profile; policies change while it runs. */
export class EvalEngine {
  readonly served: Served;
  readonly tokenizer: Tokenizer;
  readonly #url: string;
  readonly #finished = new Map<string, Finish>();
  readonly #waiting = new Map<string, (event: Finish) => void>();
  readonly #died: Promise<never>;
  #requests = 0;
  #asked = "";

  private constructor(served: Served, url: string) {
    this.served = served;
    this.#url = url;
    this.tokenizer = tokenizerOf(url, SERVED);
    this.#died = served.exited.then((exit) => Promise.reject(served.died(exit)));
    this.#died.catch(() => {});
    void this.#listen();
  }

  /** Starts an engine that uses the policy of `first`. Throws what serving throws. */
  static async start(options: EngineOptions, first: Arm): Promise<EvalEngine> {
    const { distribution } = await findEngine(options.python, process.env);
    const cpu = distribution === "vllm-cpu";
    const plan = await prepare({
      model: options.model,
      policy: first.document,
      statistics: first.statistics ?? undefined,
      python: options.python,
      engineFlags: engineFlags(options, cpu),
      environment: cpu ? { ...cpuEnvironment(process.env), ...process.env } : process.env,
    });
    const served = await start(plan, { onLine: options.onLine });
    options.onStart(served);
    await served.ready;
    if (plan.url === undefined) throw new Error("the engine has no address to send to");
    const engine = new EvalEngine(served, plan.url);
    // A policy takes effect at a step, and without a request there has been none.
    await engine.#warmUp();
    return engine;
  }

  async #warmUp(): Promise<void> {
    const item = { id: "warm-up", prompt: [2], sizes: { prompt: 1, generated: 1 }, maxTokens: 1 };
    await Promise.race([complete(this.#url, SERVED, item, 0, "warm-up"), this.#died]);
  }

  /** Tokens of a block, the least that a budget is made of. */
  get blockSize(): number {
    return this.served.controlPlane.engines()[0]?.hello.cache.blockSize ?? CPU_BLOCK;
  }

  /** Name, version and runner of the engine. */
  get description(): { name: string; version: string; runner: string } {
    const info = this.served.controlPlane.engines()[0]?.hello.engine;
    return { name: info?.name ?? "", version: info?.version ?? "", runner: info?.runner ?? "" };
  }

  get preemptions(): number {
    return Number(Object.values(this.served.controlPlane.counters().engines)[0]?.preemptions ?? 0n);
  }

  /** Puts an arm's policy in force. Throws PolicyRefused when the engine cannot carry it out. */
  async use(arm: Arm): Promise<void> {
    const policy = JSON.stringify([arm.document, arm.statistics]);
    if (policy === this.#asked) return;
    const set = this.served.controlPlane.setPolicy(arm.document, { statistics: arm.statistics });
    await Promise.race([set, this.#died]);
    this.#asked = policy;
  }

  /** One request. Rejects with EngineDied when the engine dies before it answers. */
  async request(item: Item, budget: number): Promise<Outcome> {
    const id = `eval-${this.#requests++}`;
    const event = new Promise<Finish>((resolve) => this.#waiting.set(id, resolve));
    const began = performance.now();
    // A connection that breaks is how an engine's death is often noticed first; its exit says more.
    const reply = await Promise.race([complete(this.#url, SERVED, item, budget, id), this.#died]).catch(
      async (error: unknown) => {
        if (error instanceof Error && "code" in error) await this.#death();
        throw error;
      },
    );
    const answered = performance.now();
    const finish = await this.#finishOf(id, event, roundsDue(item, reply, budget, this.#interval));
    return {
      reply,
      answered,
      seconds: (answered - began) / 1000,
      rounds: finish?.rounds ?? 0,
      tokensEvicted: finish?.evictedTotal ?? 0,
    };
  }

  get #interval(): number {
    return this.served.controlPlane.policy?.policy.interval ?? 1;
  }

  /** What the engine says of a request that it compressed; undefined where nothing was due, or nothing came. */
  async #finishOf(id: string, event: Promise<Finish>, due: boolean): Promise<Finish | undefined> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<undefined>((resolve) => {
      timer = setTimeout(resolve, due ? EVENT_MS : 0, undefined);
    });
    const finish = this.#finished.get(id) ?? (await Promise.race([event, late, this.#died]));
    clearTimeout(timer);
    this.#waiting.delete(id);
    this.#finished.delete(id);
    return finish;
  }

  async #listen(): Promise<void> {
    for await (const item of this.served.controlPlane.events()) {
      if (item.type !== "event" || item.event.kind !== "finish") continue;
      // The engine's own name for a request holds the one that it was sent with.
      const id = /eval-\d+(?=-|$)/.exec(item.event.request)?.[0];
      if (id === undefined || item.event.reason === "preempted") continue;
      this.#finished.set(id, item.event);
      this.#waiting.get(id)?.(item.event);
    }
  }

  async #death(): Promise<void> {
    await Promise.race([this.#died, new Promise((resolve) => setTimeout(resolve, 5_000))]);
  }

  async stop(): Promise<void> {
    await this.served.stop();
  }
}

/** Whether a request grew so long that a round had to fire. */
export function roundsDue(item: Item, reply: Reply, budget: number, interval: number): boolean {
  if (budget === 0) return false;
  // The last token generated is never computed; rounds fire before a step, on what is computed by then.
  const computed = item.prompt.length + reply.tokens.length - 1;
  return computed - 1 >= budget + interval;
}
