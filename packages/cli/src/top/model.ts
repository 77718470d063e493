import type {
  ApiCounters,
  ApiEngine,
  ApiEvent,
  ApiPreview,
  ApiRequests,
  ApiState,
  RequestState,
} from "@triattn/protocol";
import type { StreamMessage } from "../http/client.ts";

export const SORTS = ["length", "resident", "evicted", "rounds", "priority", "name"] as const;
export type Sort = (typeof SORTS)[number];

/** What happened a second, over the last seconds. */
export interface Rates {
  readonly rounds: number;
  readonly evicted: number;
  /** Part of the time that running requests waited for rounds, 0 … 1. */
  readonly stalled: number;
}

/** A budget that was proposed and waits for a yes. */
export interface Proposal {
  readonly budget: number;
  /** What it would do; undefined until the control plane has said. */
  readonly preview: ApiPreview | undefined;
  readonly error: string | undefined;
  /** Whether it was confirmed and is on its way. */
  readonly sent: boolean;
}

/** Everything that the view shows. */
export interface TopModel {
  url: string;
  /** Why nothing arrives; undefined while the stream is open. */
  trouble: string | undefined;
  state: ApiState | undefined;
  requests: Map<string, ApiRequests>;
  rates: Map<string, Rates>;
  events: readonly ApiEvent[];
  sort: Sort;
  reversed: boolean;
  /** Engine whose requests are shown. */
  engineId: string | undefined;
  /** Request that is chosen. */
  request: string | undefined;
  /** First request shown. */
  scroll: number;
  paused: boolean;
  help: boolean;
  proposal: Proposal | undefined;
  notice: string | undefined;
}

interface Sample {
  readonly at: number;
  readonly counters: ApiCounters;
}

const RATE_MS = 5_000;
const MOST_EVENTS = 100;

export function createModel(url: string): TopModel {
  return {
    url,
    trouble: undefined,
    state: undefined,
    requests: new Map(),
    rates: new Map(),
    events: [],
    sort: "length",
    reversed: false,
    engineId: undefined,
    request: undefined,
    scroll: 0,
    paused: false,
    help: false,
    proposal: undefined,
    notice: undefined,
  };
}

/** Takes messages of the stream into a model. */
export class Intake {
  readonly #samples = new Map<string, Sample[]>();
  readonly #model: TopModel;

  constructor(model: TopModel) {
    this.#model = model;
  }

  take(message: StreamMessage, now: number): void {
    const model = this.#model;
    if (message.type === "state") {
      model.state = message.data;
      const ids = message.data.engines.map(({ engineId }) => engineId);
      if (model.engineId === undefined || !ids.includes(model.engineId)) model.engineId = ids[0];
      for (const engine of message.data.engines) this.#sample(engine, now);
    } else if (message.type === "requests") {
      model.requests.set(message.data.engineId, message.data);
    } else if (message.type === "events") {
      model.events = [...model.events, ...message.data].slice(-MOST_EVENTS);
    }
  }

  #sample({ engineId, counters }: ApiEngine, now: number): void {
    if (counters === null) return;
    const samples = this.#samples.get(engineId) ?? [];
    const last = samples.at(-1);
    if (last !== undefined && Number(counters.step) < Number(last.counters.step)) samples.length = 0;
    samples.push({ at: now, counters });
    while (samples.length > 2 && (samples[1] as Sample).at < now - RATE_MS) samples.shift();
    this.#samples.set(engineId, samples);
    const first = samples[0] as Sample;
    const seconds = (now - first.at) / 1000;
    if (seconds <= 0) return;
    const per = (of: (counters: ApiCounters) => number | string) =>
      (Number(of(counters)) - Number(of(first.counters))) / seconds;
    this.#model.rates.set(engineId, {
      rounds: per(({ rounds }) => rounds),
      evicted: per(({ tokensEvicted }) => tokensEvicted),
      stalled: per(({ stallSeconds }) => stallSeconds),
    });
  }
}

const KEYS: Readonly<Record<Exclude<Sort, "name">, (request: RequestState) => number>> = {
  resident: (request) => request.resident,
  length: (request) => request.computed,
  evicted: (request) => request.evictedTotal,
  rounds: (request) => request.rounds,
  priority: (request) => -request.priority,
};

/** The requests of the engine shown, in the order asked for: most first, names from a to z. */
export function sorted(model: TopModel): readonly RequestState[] {
  const requests = model.requests.get(model.engineId ?? "")?.requests ?? [];
  const byName = (a: RequestState, b: RequestState) =>
    a.request < b.request ? -1 : a.request > b.request ? 1 : 0;
  const { sort } = model;
  const order =
    sort === "name"
      ? byName
      : (a: RequestState, b: RequestState) => KEYS[sort](b) - KEYS[sort](a) || byName(a, b);
  const list = [...requests].sort(order);
  return model.reversed ? list.reverse() : list;
}
