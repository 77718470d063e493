import type {
  ApiCounters,
  ApiEngine,
  ApiKept,
  ApiPolicy,
  ApiRequests,
  Counters,
  JsonCount,
  KeptReport,
  RequestsReport,
} from "@triattn/protocol";
import type { PolicyRevision } from "../policy-store.ts";
import type { EngineView } from "../types.ts";

/** A 64-bit count in JSON. */
export function jsonCount(value: bigint): JsonCount {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : String(value);
}

type Counted<T> = { [K in keyof T]: T[K] extends bigint ? JsonCount : T[K] };

function counted<T extends object>(value: T): Counted<T> {
  const entries = Object.entries(value).map(([key, item]) => [
    key,
    typeof item === "bigint" ? jsonCount(item) : item,
  ]);
  return Object.fromEntries(entries) as Counted<T>;
}

export function policyView({ revision, policy, statistics, rules, since }: PolicyRevision): ApiPolicy {
  return { revision, policy, statistics, rules, since };
}

export function countersView(counters: Counters): ApiCounters {
  return counted(counters);
}

export function engineView(engine: EngineView, tokensPerSecond: number): ApiEngine {
  const { hello, counters, step } = engine;
  return {
    engineId: engine.engineId,
    connected: engine.connected,
    engine: hello.engine,
    model: hello.model,
    cache: hello.cache,
    capabilities: hello.capabilities,
    revision: engine.revision,
    step: step === undefined ? null : jsonCount(step),
    eventsLost: jsonCount(engine.eventsLost),
    counters: counters === undefined ? null : countersView(counters),
    tokensPerSecond,
  };
}

export function requestsView(report: RequestsReport & { engineId: string }): ApiRequests {
  const { engineId, step, requests, omitted } = report;
  return { engineId, step: jsonCount(step), requests, omitted };
}

export function keptView(report: KeptReport & { engineId: string }): ApiKept {
  const { type: _, step, counts, ...rest } = report;
  const bytes = Buffer.from(counts.buffer, counts.byteOffset, counts.byteLength);
  return { ...rest, step: jsonCount(step), counts: bytes.toString("base64") };
}
