import type { Counters, Events, Hello } from "@triattn/protocol";
import type { EngineView } from "./types.ts";

/** Engines remembered after they went, so that their event numbers can be followed when they return. */
const MAX_REMEMBERED = 256;
/** Engines connected at once. */
export const MAX_CONNECTED = 256;

/** What is known of one engine process. */
export class Engine {
  hello: Hello;
  /** Its connection; undefined while there is none. */
  route: string | undefined;
  lastSeen = 0;
  /** Revision last sent over this connection; 0 when none was. */
  sent = 0;
  /** Highest revision that this control plane ever sent it. */
  highestSent = 0;
  /** Revision it acknowledged to this control plane. */
  acknowledged: { readonly revision: number; readonly step: bigint } | undefined;
  nextEvent: bigint;
  eventsLost = 0n;
  counters: Counters | undefined;

  constructor(hello: Hello) {
    this.hello = hello;
    this.nextEvent = hello.nextEvent;
  }

  get id(): string {
    return this.hello.engineId;
  }

  /** The next event is said to carry `number`: the gap before it, if there is one. */
  expect(number: bigint): { first: bigint; count: bigint } | undefined {
    const first = this.nextEvent;
    if (number <= first) return undefined;
    this.nextEvent = number;
    this.eventsLost += number - first;
    return { first, count: number - first };
  }

  /** The events of a batch that have not been seen before. Call `expect` first. */
  fresh(batch: Events): Events["events"] {
    const seen = this.nextEvent - batch.first;
    const events = seen > 0n ? batch.events.slice(Number(seen)) : batch.events;
    this.nextEvent += BigInt(events.length);
    return events;
  }

  view(): EngineView {
    return {
      engineId: this.id,
      connected: this.route !== undefined,
      hello: this.hello,
      revision: this.acknowledged?.revision ?? this.hello.revision,
      step: this.acknowledged?.step,
      nextEvent: this.nextEvent,
      eventsLost: this.eventsLost,
      counters: this.counters,
    };
  }
}

/** Engines by id and by connection. */
export class Engines {
  readonly #byId = new Map<string, Engine>();
  readonly #byRoute = new Map<string, Engine>();

  get(engineId: string): Engine | undefined {
    return this.#byId.get(engineId);
  }

  at(route: string): Engine | undefined {
    return this.#byRoute.get(route);
  }

  all(): Engine[] {
    return [...this.#byId.values()];
  }

  connected(): Engine[] {
    return [...this.#byRoute.values()];
  }

  /** Takes an engine in under its connection; the newest is last. */
  connect(engine: Engine, route: string): void {
    this.disconnect(engine);
    engine.route = route;
    engine.sent = 0;
    this.#byRoute.set(route, engine);
    this.#byId.delete(engine.id);
    this.#byId.set(engine.id, engine);
    for (const old of this.#byId.values()) {
      if (this.#byId.size <= MAX_REMEMBERED) break;
      if (old.route === undefined) this.#byId.delete(old.id);
    }
  }

  disconnect(engine: Engine): void {
    if (engine.route === undefined) return;
    this.#byRoute.delete(engine.route);
    engine.route = undefined;
  }
}
