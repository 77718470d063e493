import {
  type ApiCounters,
  type ApiEngine,
  type ApiEvent,
  type ApiKept,
  type ApiPolicy,
  PolicyDocument,
  presets,
  type RequestState,
  type Rule,
} from "@triattn/protocol";
import { keptOf } from "./kept.ts";

export interface SimulationOptions {
  /** Requests that run at once. */
  readonly requests: number;
  /** Tokens a second of one request. */
  readonly speed?: number;
  readonly budget?: number;
  readonly seed?: number;
}

/** Numbers in [0, 1), the same ones for a seed (mulberry32). */
export function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

interface Simulated extends Mutable<RequestState> {
  /** Tokens of its answer, at whose end it finishes. */
  target: number;
  fraction: number;
}

const BLOCK = 16;
const LAYERS = 36;
const KV_HEADS = 8;
const BINS = 256;

/** An engine that is not there: requests that grow, rounds that fire, one policy in force. Time is what `advance` says. */
export class Simulation {
  readonly engineId = "vllm-7f3a90c2";
  readonly #random: () => number;
  readonly #speed: number;
  #time: number;
  #pace: number;
  #step = 48_210;
  #lastEvent = 0;
  #lastRequest = 0;
  #requests: Simulated[] = [];
  #events: ApiEvent[] = [];
  #kept: ApiKept | null = null;
  readonly #blocks: number;
  connected = true;
  watched: string | null = null;
  readonly history: ApiPolicy[] = [];
  readonly #counters: Mutable<ApiCounters>;

  constructor({ requests, speed = 24, budget = 2048, seed = 7 }: SimulationOptions, time: number) {
    this.#random = generator(seed);
    this.#speed = speed;
    this.#pace = speed;
    this.#time = time;
    this.#blocks = Math.ceil((requests * (budget + 128) * 1.2) / BLOCK);
    this.#counters = {
      step: this.#step,
      running: 0,
      waiting: 0,
      residentTokens: 0,
      peakResidentTokens: 0,
      usedBlocks: 0,
      peakUsedBlocks: 0,
      tokensGenerated: 0,
      requestsFinished: 0,
      preemptions: 0,
      rounds: 0,
      tokensEvicted: 0,
      blocksReclaimed: 0,
      roundsSkipped: 0,
      roundBatches: 0,
      planSeconds: 0,
      roundSeconds: 0,
      stallSeconds: 0,
      eventsDropped: 0,
    };
    this.setPolicy(PolicyDocument.parse({ ...presets.triattention, budget }), [
      { name: "interactive", match: { priority: { max: -1 } }, budget: budget * 2 },
      { name: "batch", match: { tags: ["batch"] }, budget: budget / 2 },
    ]);
    this.#event("connected", null, { engine: "vllm", version: "0.26.0", model: "Qwen/Qwen3-8B" });
    for (let i = 0; i < requests; i++) this.#requests.push(this.#arrive(true));
    for (const request of this.#requests.slice(-Math.ceil(requests / 40))) {
      Object.assign(request, { state: "waiting", computed: 0, resident: 0, evictedTotal: 0, rounds: 0 });
    }
    this.#count();
  }

  /** ms since the epoch. */
  get time(): number {
    return this.#time;
  }

  get policy(): ApiPolicy {
    const [newest] = this.history;
    if (newest === undefined) throw new Error("there is always a policy");
    return newest;
  }

  setPolicy(
    policy: PolicyDocument,
    rules: readonly Rule[],
    statistics: string | null = "qwen3-8b",
  ): ApiPolicy {
    const since = new Date(this.#time).toISOString();
    const next = { revision: this.history.length + 1, policy, rules, statistics, since };
    this.history.unshift(next);
    this.#event("policy", null, { revision: next.revision, name: policy.name, budget: policy.budget });
    this.#event("acknowledged", null, { revision: next.revision, step: this.#step + 1 });
    for (const request of this.#requests) request.budget = this.#budget(request);
    return next;
  }

  /** Lets time pass. */
  advance(seconds: number): void {
    this.#time += seconds * 1000;
    this.#step += Math.round(seconds * this.#speed);
    // Load comes and goes.
    const load = 0.86 + 0.1 * Math.sin(this.#time / 37_000) + 0.06 * Math.sin(this.#time / 9100);
    this.#pace = this.#speed * load;
    let batch = false;
    for (const request of this.#requests) {
      if (request.state === "waiting") {
        if (this.#random() < 0.1 * seconds)
          Object.assign(request, { state: "running", computed: request.prompt, resident: request.prompt });
        continue;
      }
      request.fraction += seconds * this.#pace * (0.85 + 0.3 * this.#random());
      const grown = Math.floor(request.fraction);
      request.fraction -= grown;
      request.computed += grown;
      request.resident += grown;
      this.#counters.tokensGenerated = Number(this.#counters.tokensGenerated) + grown;
      batch = this.#round(request) || batch;
    }
    this.#requests = this.#requests.map((request) =>
      request.computed >= request.target ? this.#finish(request) : request,
    );
    const counters = this.#counters;
    if (batch) counters.roundBatches = Number(counters.roundBatches) + 1;
    this.#count();
  }

  engine(): ApiEngine {
    return {
      engineId: this.engineId,
      connected: this.connected,
      engine: { name: "vllm", version: "0.26.0", runner: "v2", pid: 4127, worldSize: 1 },
      model: {
        name: "Qwen/Qwen3-8B",
        fingerprint: "5d0c",
        weights: null,
        layers: LAYERS,
        queryHeads: 32,
        kvHeads: KV_HEADS,
        headDim: 128,
        rotary: { type: "default", theta: 1e6, dim: 128, attentionScaling: 1, pairing: "half" },
      },
      cache: { blockSize: BLOCK, blocks: this.#blocks, maxModelLen: 40_960, dtype: "bfloat16" },
      capabilities: ["cuda-graphs", "prefix-caching", "chunked-prefill", "async-scheduling", "fp8-cache"],
      revision: this.policy.revision,
      step: this.#step,
      eventsLost: 0,
      counters: { ...this.#counters },
      tokensPerSecond: this.#counters.running * this.#pace * (0.97 + 0.06 * this.#random()),
    };
  }

  requests(): RequestState[] {
    return this.#requests.map(({ target: _, fraction: __, ...request }) => ({ ...request }));
  }

  /** Events since the last call. */
  takeEvents(): ApiEvent[] {
    return this.#events.splice(0);
  }

  takeKept(): ApiKept | null {
    const kept = this.#kept;
    this.#kept = null;
    return kept;
  }

  /** What a policy would do now. */
  effect(policy: PolicyDocument, rules: readonly Rule[]) {
    const running = this.#requests.filter(({ state }) => state === "running");
    const over = running.flatMap((request) => {
      const budget = this.#budget(request, policy, rules);
      const fires = budget > 0 && request.resident >= budget + policy.interval;
      return fires ? [request.resident - budget] : [];
    });
    const tokensEvicted = over.reduce((sum, tokens) => sum + tokens, 0);
    const blocksReclaimed = over.reduce((sum, tokens) => sum + Math.floor(tokens / BLOCK), 0);
    const used = this.#counters.usedBlocks;
    return {
      engineId: this.engineId,
      requests: running.length,
      requestsCompressed: over.length,
      tokensEvicted,
      blocksReclaimed,
      cacheUsedBefore: used / this.#blocks,
      cacheUsedAfter: (used - blocksReclaimed) / this.#blocks,
    };
  }

  /** A round for the watched request, whether it is due or not. */
  showKept(): void {
    const request = this.#requests.find((one) => one.request === this.watched);
    if (request !== undefined && request.rounds > 0) this.#keep(request);
  }

  #arrive(inTheMiddle: boolean): Simulated {
    this.#lastRequest += 1;
    const random = this.#random;
    const tags = random() < 0.35 ? ["batch"] : random() < 0.2 ? ["agent", "long"] : [];
    const prompt = 80 + Math.floor(900 * random() ** 2);
    const target = 6000 + Math.floor(26_000 * random());
    const hex = Math.floor(random() * 2 ** 32)
      .toString(16)
      .padStart(8, "0");
    const request: Simulated = {
      request: `chatcmpl-${hex}`,
      state: "running",
      priority: random() < 0.1 ? -1 : 0,
      tags,
      rule: null,
      prompt,
      computed: inTheMiddle ? prompt + Math.floor((target - prompt) * random()) : prompt,
      resident: 0,
      budget: 0,
      evictedTotal: 0,
      rounds: 0,
      target,
      fraction: random(),
    };
    request.budget = this.#budget(request);
    const { interval } = this.policy.policy;
    request.rounds = Math.max(0, Math.floor((request.computed - request.budget) / interval));
    request.evictedTotal = request.rounds * interval;
    request.resident = request.computed - request.evictedTotal;
    return request;
  }

  #budget(
    request: Simulated,
    { budget }: PolicyDocument = this.policy.policy,
    rules = this.policy.rules,
  ): number {
    const rule = rules.find(({ match }) => {
      const { min = -Infinity, max = Infinity } = match.priority ?? {};
      return (
        request.priority >= min &&
        request.priority <= max &&
        (match.tags ?? []).every((tag) => request.tags.includes(tag))
      );
    });
    request.rule = rule?.name ?? null;
    return rule?.budget ?? budget;
  }

  #round(request: Simulated): boolean {
    const { budget } = request;
    if (budget === 0 || request.resident < budget + this.policy.policy.interval) return false;
    const evicted = request.resident - budget;
    const blocks = Math.floor(evicted / BLOCK);
    request.resident = budget;
    request.evictedTotal += evicted;
    request.rounds += 1;
    const counters = this.#counters;
    counters.rounds = Number(counters.rounds) + 1;
    counters.tokensEvicted = Number(counters.tokensEvicted) + evicted;
    counters.blocksReclaimed = Number(counters.blocksReclaimed) + blocks;
    counters.roundSeconds += 0.00012;
    counters.stallSeconds += 0.00013;
    this.#event("round", request.request, {
      step: this.#step,
      revision: this.policy.revision,
      budget,
      computed: request.computed,
      evicted,
      evictedTotal: request.evictedTotal,
      blocksReclaimed: blocks,
      blocksCopied: 0,
    });
    if (request.request === this.watched) this.#keep(request);
    return true;
  }

  #keep(request: Simulated): void {
    const { computed, resident, prompt } = request;
    const shape = { layers: LAYERS, kvHeads: KV_HEADS, bins: BINS };
    this.#kept = {
      engineId: this.engineId,
      request: request.request,
      step: this.#step,
      computed,
      resident,
      ...shape,
      counts: keptOf({ ...shape, computed, resident, prompt }),
    };
  }

  #finish(request: Simulated): Simulated {
    this.#event("finish", request.request, {
      step: this.#step,
      reason: "finished",
      computed: request.computed,
      evictedTotal: request.evictedTotal,
      rounds: request.rounds,
    });
    this.#counters.requestsFinished = Number(this.#counters.requestsFinished) + 1;
    return Object.assign(this.#arrive(false), { state: "waiting", computed: 0, resident: 0 });
  }

  #count(): void {
    const running = this.#requests.filter(({ state }) => state === "running");
    const counters = this.#counters;
    counters.step = this.#step;
    counters.running = running.length;
    counters.waiting = this.#requests.length - running.length;
    counters.residentTokens = running.reduce((sum, { resident }) => sum + resident, 0);
    counters.usedBlocks = Math.min(
      this.#blocks,
      running.reduce((sum, { resident }) => sum + Math.ceil(resident / BLOCK), 0),
    );
    counters.peakResidentTokens = Math.max(counters.peakResidentTokens, counters.residentTokens);
    counters.peakUsedBlocks = Math.max(counters.peakUsedBlocks, counters.usedBlocks);
  }

  #event(kind: ApiEvent["kind"], request: string | null, data: ApiEvent["data"]): void {
    this.#lastEvent += 1;
    const engineId = kind === "policy" ? null : this.engineId;
    this.#events.push({
      id: this.#lastEvent,
      time: new Date(this.#time).toISOString(),
      engineId,
      kind,
      request,
      data,
    });
  }
}
