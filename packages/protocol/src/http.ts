/**
 * What the control plane serves over HTTP, for the dashboard, `triattn top` and programs: JSON over
 * `GET /api/state`, server-sent events over `GET /api/events`, and a few requests that change something.
 * Numbers of 64 bits travel as JSON numbers while they are safe integers, otherwise as digits in a string.
 */
import type { CacheInfo, EngineInfo, KeptReport, ModelGeometry, RequestState } from "./messages.ts";
import type { PolicyDocument, PolicyInput } from "./policy.ts";
import type { PresetName } from "./presets.ts";

/** A 64-bit count in JSON. */
export type JsonCount = number | string;

/** A rule as a user writes it. The first that matches a request decides; a request's own budget wins. */
export interface Rule {
  /** /^[a-z0-9][a-z0-9._-]{0,63}$/ */
  readonly name: string;
  readonly match: {
    /** Names of served models; `*` stands for anything. Left out: any. */
    readonly model?: string;
    /** Bounds, both inclusive, of the request's priority number. */
    readonly priority?: { readonly min?: number; readonly max?: number };
    /** Tags that the request carries, all of them (`vllm_xargs` / `custom_params`: `triattn_tags`). */
    readonly tags?: readonly string[];
  };
  /** KV budget in tokens; 0: never compress. */
  readonly budget?: number;
  /** Another policy for the requests that match. */
  readonly policy?: PresetName | PolicyInput;
}

export interface ApiPolicy {
  readonly revision: number;
  readonly policy: PolicyDocument;
  readonly statistics: string | null;
  readonly rules: readonly Rule[];
  /** When it was put in force, ISO 8601. */
  readonly since: string;
}

export interface ApiCounters {
  readonly step: JsonCount;
  readonly running: number;
  readonly waiting: number;
  readonly residentTokens: number;
  readonly peakResidentTokens: number;
  readonly usedBlocks: number;
  readonly peakUsedBlocks: number;
  readonly tokensGenerated: JsonCount;
  readonly requestsFinished: JsonCount;
  readonly preemptions: JsonCount;
  readonly rounds: JsonCount;
  readonly tokensEvicted: JsonCount;
  readonly blocksReclaimed: JsonCount;
  readonly roundsSkipped: JsonCount;
  readonly roundBatches: JsonCount;
  readonly planSeconds: number;
  readonly roundSeconds: number;
  readonly stallSeconds: number;
  readonly eventsDropped: JsonCount;
}

export interface ApiEngine {
  readonly engineId: string;
  readonly connected: boolean;
  readonly engine: EngineInfo;
  readonly model: ModelGeometry;
  readonly cache: CacheInfo;
  readonly capabilities: readonly string[];
  readonly revision: number;
  readonly step: JsonCount | null;
  readonly eventsLost: JsonCount;
  readonly counters: ApiCounters | null;
  /** Tokens generated a second, over the last seconds. */
  readonly tokensPerSecond: number;
}

export interface ApiState {
  readonly version: string;
  /** ISO 8601. */
  readonly time: string;
  readonly policy: ApiPolicy | null;
  readonly engines: readonly ApiEngine[];
  /** The pressure controller, where it is on. */
  readonly controller: {
    readonly budget: number;
    readonly min: number;
    readonly max: number;
    readonly reason: string;
  } | null;
}

export interface ApiRequests {
  readonly engineId: string;
  readonly step: JsonCount;
  readonly requests: readonly RequestState[];
  readonly omitted: number;
}

/** `counts` as base64 of uint16 little-endian [layers, kvHeads, bins]. */
export type ApiKept = Omit<KeptReport, "type" | "step" | "counts"> & {
  readonly engineId: string;
  readonly step: JsonCount;
  readonly counts: string;
};

/** A line of the log of events, newest last. */
export interface ApiEvent {
  /** Of this control plane; consecutive. */
  readonly id: number;
  readonly time: string;
  readonly engineId: string | null;
  readonly kind:
    | "round"
    | "skip"
    | "finish"
    | "connected"
    | "disconnected"
    | "policy"
    | "acknowledged"
    | "refused"
    | "gap";
  readonly request: string | null;
  /** The rest of it, by kind: as in the protocol's messages. */
  readonly data: Readonly<Record<string, string | number | boolean | null>>;
}

/**
 * `GET /api/events` (text/event-stream): `event:` is the key, `data:` the JSON. `state` comes at once and then
 * whenever it changed, at most twice a second. `events` come in batches, at most ten times a second, each with
 * the `id:` of its newest; first the newest there are, or with `Last-Event-ID` those after it.
 * `?requests=1` and `?kept=ENGINE/REQUEST` ask the engines for what costs them something, while the stream lasts.
 */
export interface ApiStream {
  readonly state: ApiState;
  readonly requests: ApiRequests;
  readonly kept: ApiKept;
  readonly events: readonly ApiEvent[];
}

/** `PUT /api/policy` and `POST /api/policy/preview`. */
export interface ApiPolicyRequest {
  readonly policy: PresetName | PolicyInput;
  readonly rules?: readonly Rule[];
  /** Name or path of statistics; left out: as before. */
  readonly statistics?: string | null;
}

/** `GET /api/policy/history`: newest first, the one in force is the first; refused ones are not there. */
export interface ApiHistory {
  readonly revisions: readonly ApiPolicy[];
}

/** `POST /api/policy/rollback`: puts an earlier revision in force again, under a new number. */
export interface ApiRollbackRequest {
  readonly revision: number;
}

/**
 * `POST /api/session`: answers 204 and sets a cookie that stands for the token, for pages that cannot send a
 * header (`EventSource`). Programs send `authorization: Bearer TOKEN` instead. Without a token in force neither is needed.
 */
export interface ApiSessionRequest {
  readonly token: string;
}

/** Of `PUT /api/policy` and `POST /api/policy/rollback`. */
export interface ApiPolicyResponse {
  readonly revision: number;
  readonly engines: readonly { readonly engineId: string; readonly step: JsonCount }[];
}

/** What a policy would do to the requests that run now; nothing is changed. */
export interface ApiPreview {
  readonly document: PolicyDocument;
  /** Lines of the document that differ from the one in force. */
  readonly changes: readonly { readonly path: string; readonly from: unknown; readonly to: unknown }[];
  readonly engines: readonly {
    readonly engineId: string;
    /** Requests that a round would fire for at once, and what these rounds would free. */
    readonly requestsCompressed: number;
    readonly tokensEvicted: number;
    readonly blocksReclaimed: number;
    /** Blocks in use over blocks of the cache, 0 … 1. */
    readonly cacheUsedBefore: number;
    readonly cacheUsedAfter: number;
    /** Running requests that the numbers are of; 0 also where the engine did not report them in time. */
    readonly requests: number;
  }[];
}

/** Body of every answer that is not 2xx. */
export interface ApiError {
  readonly error: {
    readonly message: string;
    readonly field: string | null;
    readonly value: string | null;
    readonly remedy: string | null;
  };
}

/** Where it listens unless told otherwise. */
export const DEFAULT_HTTP_PORT = 9470;
/** Requests that change something must carry this header (any value): no form or foreign page can set it. */
export const REQUEST_HEADER = "x-triattn-request";
