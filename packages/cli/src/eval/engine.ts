import type { EngineEvent } from "@triattn/protocol";
import { type BackendName, backendOf } from "../serve/backends.ts";
import { keptQueries } from "../serve/environment.ts";
import { prepare } from "../serve/prepare.ts";
import { findEngine } from "../serve/python.ts";
import { type Served, start } from "../serve/serve.ts";
import type { Arm } from "./arms.ts";
import { type EngineNeeds, type EvalBackend, roundsDue } from "./backend.ts";
import { evalBackend } from "./backends.ts";
import type { EngineClient } from "./client.ts";
import type { Item, Reply, Tokenizer } from "./task.ts";

/** What one request went through. */
export interface Outcome {
  readonly reply: Reply;
  readonly rounds: number;
  readonly tokensEvicted: number;
  /** Tokens whose keys and values were computed. */
  readonly computed: number;
  /** Whether it grew so long that a round had to fire. */
  readonly due: boolean;
  readonly seconds: number;
  /** When its answer was there, by `performance.now()`; what the engine says of it comes a little later. */
  readonly answered: number;
}

export interface EngineOptions extends EngineNeeds {
  readonly backend: BackendName;
  readonly python?: string | undefined;
  readonly onLine: (line: string) => void;
  readonly onStart: (served: Served) => void;
}

type Finish = Extract<EngineEvent, { kind: "finish" }>;

const SERVED = "evaluated";
const EVENT_MS = 10_000;
/** How often a request is sent anew whose last event may be among those that were lost. */
const TRIES = 3;

/** A real engine under a control plane, for one profile; policies change while it runs. */
export class EvalEngine {
  readonly served: Served;
  readonly #backend: EvalBackend;
  readonly #needs: EngineNeeds;
  readonly #client: EngineClient;
  readonly #finished = new Map<string, Finish>();
  readonly #waiting = new Map<string, (event: Finish) => void>();
  /** Requests that lost what they kept: their last rounds may be younger than what made one due. */
  readonly #preempted = new Set<string>();
  readonly #died: Promise<never>;
  #requests = 0;
  #asked = "";

  private constructor(served: Served, backend: EvalBackend, needs: EngineNeeds, url: string) {
    this.served = served;
    this.#backend = backend;
    this.#needs = needs;
    this.#client = backend.client(url, SERVED);
    this.#died = served.exited.then((exit) => Promise.reject(served.died(exit)));
    this.#died.catch(() => {});
    void this.#listen();
  }

  /** Starts an engine that uses the policy of `first`. Throws what serving throws. */
  static async start(options: EngineOptions, first: Arm): Promise<EvalEngine> {
    const backend = evalBackend(options.backend);
    const found = await findEngine(options.python, process.env, backendOf(options.backend));
    const cpu = backend.onCpu(found, options.flags, process.env);
    const environment = cpu ? { ...backend.cpuEnvironment(process.env), ...process.env } : process.env;
    const plan = await prepare({
      model: options.model,
      policy: first.document,
      statistics: first.statistics ?? undefined,
      backend: options.backend,
      python: options.python,
      engineFlags: [...backend.flags(options, SERVED, cpu), ...options.flags],
      environment: { ...environment, ...keptQueries(options.policies, environment) },
    });
    const served = await start(plan, { onLine: options.onLine });
    options.onStart(served);
    await served.ready;
    if (plan.url === undefined) throw new Error("the engine has no address to send to");
    const engine = new EvalEngine(served, backend, options, plan.url);
    // A policy takes effect at a step, and without a request there has been none.
    await engine.#warmUp();
    return engine;
  }

  async #warmUp(): Promise<void> {
    const item = { id: "warm-up", prompt: [2], sizes: { prompt: 1, generated: 1 }, maxTokens: 1 };
    await Promise.race([this.#client.complete(item, 0, "warm-up"), this.#died]);
  }

  /** The model's tokenizer, as the engine has it. */
  get tokenizer(): Tokenizer {
    return this.#client.tokenizer;
  }

  /** Tokens of a block, the least that a budget is made of. */
  get blockSize(): number {
    return this.served.controlPlane.engines()[0]?.hello.cache.blockSize ?? 1;
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

  /**
   * One request. Rejects with EngineDied when the engine dies before it answers. Sent anew where the engine said nothing
   * of it and events were lost meanwhile: what was never heard proves nothing.
   */
  async request(item: Item, budget: number): Promise<Outcome> {
    for (let tries = 1; ; tries++) {
      const before = this.#lost;
      const outcome = await this.#once(item, budget);
      if (!outcome.due || outcome.rounds > 0 || this.#lost === before || tries === TRIES) return outcome;
    }
  }

  /** Events of this engine that were never heard. */
  get #lost(): bigint {
    return this.served.controlPlane.engines()[0]?.eventsLost ?? 0n;
  }

  async #once(item: Item, budget: number): Promise<Outcome> {
    const id = `eval-${this.#requests++}`;
    const event = new Promise<Finish>((resolve) => this.#waiting.set(id, resolve));
    const began = performance.now();
    // A connection that breaks is how an engine's death is often noticed first; its exit says more.
    const reply = await Promise.race([this.#client.complete(item, budget, id), this.#died]).catch(
      async (error: unknown) => {
        if (error instanceof Error && "code" in error) await this.#death();
        throw error;
      },
    );
    const answered = performance.now();
    const grown = roundsDue(this.#backend, this.#needs, item, reply, budget);
    const finish = await this.#finishOf(id, event, grown);
    const due = !this.#preempted.delete(id) && grown;
    return {
      reply,
      answered,
      due,
      seconds: (answered - began) / 1000,
      rounds: finish?.rounds ?? 0,
      tokensEvicted: finish?.evictedTotal ?? 0,
      // By the time an answer is known to be wrong there is more of it; of a whole one the last token never is computed.
      computed: finish?.computed ?? item.prompt.length + reply.tokens.length - 1,
    };
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
      if (id === undefined) continue;
      if (item.event.reason === "preempted") {
        this.#preempted.add(id);
        continue;
      }
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
