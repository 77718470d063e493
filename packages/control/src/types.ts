import type { Counters, EngineEvent, Hello, KeptReport, RequestsReport } from "@triattn/protocol";
import type { DropKind } from "./drops.ts";
import type { PolicyRevision } from "./policy-store.ts";

/** One engine, as it was when this was asked for. */
export interface EngineView {
  readonly engineId: string;
  readonly connected: boolean;
  /** What the engine said of itself. */
  readonly hello: Hello;
  /** Revision that the engine uses, and the scheduler step at which every rank began to; 0 before the first. */
  readonly revision: number;
  readonly step: bigint | undefined;
  /** Number of the next event expected. */
  readonly nextEvent: bigint;
  /** Events that the engine numbered and that never arrived. */
  readonly eventsLost: bigint;
  /** The newest counters; undefined before the first. */
  readonly counters: Counters | undefined;
}

/** When an engine put a revision in force. */
export interface Acknowledgement {
  readonly engineId: string;
  /** Scheduler step at which every rank of the engine began to use it. */
  readonly step: bigint;
}

export interface PolicyResult {
  readonly revision: number;
  readonly engines: readonly Acknowledgement[];
}

/** What `events()` yields. */
export type ControlEvent =
  | { readonly type: "connected"; readonly engine: EngineView }
  | { readonly type: "disconnected"; readonly engineId: string; readonly reason: string }
  | ({ readonly type: "policy" } & PolicyRevision)
  | {
      readonly type: "acknowledged";
      readonly revision: number;
      readonly engineId: string;
      readonly step: bigint;
    }
  | {
      readonly type: "refused";
      readonly revision: number;
      readonly engineId: string;
      readonly field: string;
      readonly value: string;
      readonly remedy: string;
      readonly message: string;
    }
  | {
      readonly type: "event";
      readonly engineId: string;
      /** Number that the engine gave the event; consecutive per engine. */
      readonly number: bigint;
      readonly event: EngineEvent;
    }
  /** Events `first` … `first + count - 1` of an engine never arrived. */
  | { readonly type: "gap"; readonly engineId: string; readonly first: bigint; readonly count: bigint }
  | { readonly type: "counters"; readonly engineId: string; readonly counters: Counters }
  /** Only while somebody watches. */
  | (RequestsReport & { readonly engineId: string })
  | (KeptReport & { readonly engineId: string })
  /** This consumer was too slow: its oldest `dropped` items went. */
  | { readonly type: "overflow"; readonly dropped: number };

/** What `events(…)` of some types yields: those, and `overflow` whenever the consumer was too slow. */
export type ControlEventOf<T extends ControlEvent["type"]> = Extract<
  ControlEvent,
  { readonly type: T | "overflow" }
>;

export interface LinkCounters {
  /** Frames that arrived, good or bad. */
  readonly framesReceived: number;
  readonly framesDropped: Readonly<Record<DropKind, number>>;
  readonly eventsReceived: bigint;
  readonly eventsLost: bigint;
  /** Items dropped for slow consumers of `events()`. */
  readonly itemsOverflowed: number;
}

export interface ControlCounters {
  readonly engines: Readonly<Record<string, Counters>>;
  readonly link: LinkCounters;
}
