import type { ApiEvent, JsonCount } from "@triattn/protocol";
import type { ControlEvent } from "../types.ts";
import { jsonCount } from "./views.ts";

/** Events remembered, for whoever comes, or comes back. */
const CAPACITY = 2000;

type Line = Pick<ApiEvent, "kind" | "engineId" | "request" | "data">;

/** What happened, newest last; the oldest go. */
export class EventLog {
  #lines: ApiEvent[] = [];
  #last = 0;

  /** Number of the newest event; 0 before the first. */
  get last(): number {
    return this.#last;
  }

  add(event: ControlEvent, now: Date = new Date()): void {
    const line = describe(event);
    if (line === undefined) return;
    this.#last += 1;
    this.#lines.push({ id: this.#last, time: now.toISOString(), ...line });
    // In one go now and then: shifting a long array each time is slow.
    if (this.#lines.length > 2 * CAPACITY) this.#lines = this.#lines.slice(-CAPACITY);
  }

  /** Events after number `id`: the newest `most` of them. */
  after(id: number, most: number): readonly ApiEvent[] {
    const count = Math.min(this.#last - id, most, this.#lines.length);
    return count <= 0 ? [] : this.#lines.slice(-count);
  }
}

function describe(event: ControlEvent): Line | undefined {
  switch (event.type) {
    case "event": {
      const { kind, request, ...rest } = event.event;
      return { kind, engineId: event.engineId, request, data: flat(rest) };
    }
    case "connected": {
      const { engine, model } = event.engine.hello;
      const data = { engine: engine.name, version: engine.version, model: model.name };
      return { kind: "connected", engineId: event.engine.engineId, request: null, data };
    }
    case "disconnected":
    case "gap":
    case "acknowledged":
    case "refused": {
      const { type, engineId, ...rest } = event;
      return { kind: type, engineId, request: null, data: flat(rest) };
    }
    case "policy": {
      const { revision, policy, statistics, rules } = event;
      const data = { revision, name: policy.name, budget: policy.budget, statistics, rules: rules.length };
      return { kind: "policy", engineId: null, request: null, data };
    }
    default:
      return undefined;
  }
}

function flat(
  values: Readonly<Record<string, string | number | bigint>>,
): Readonly<Record<string, JsonCount>> {
  return Object.fromEntries(
    Object.entries(values).map(([key, value]) => [key, typeof value === "bigint" ? jsonCount(value) : value]),
  );
}
