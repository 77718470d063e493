import { computed, signal } from "@preact/signals";
import type { ApiEvent, ApiKept, ApiRequests, ApiState, ApiStream } from "@triattn/protocol";
import type { ConnectionStatus } from "../api/connection.ts";
import { toNumber } from "../lib/format.ts";
import { keyOf, type Row, toRow } from "../lib/requests.ts";
import { RoundBook } from "../lib/rounds.ts";
import { Telemetry } from "./telemetry.ts";

const MOST_EVENTS = 5000;
/** Data older than this is marked as stale. */
export const STALE_MS = 5000;
const CARRY_MS = 2000;
/** When the newest state came, in ms. */
let stateReceived = 0;

export const connection = signal<ConnectionStatus>({ phase: "connecting", reason: null, retryAt: null });
export const state = signal<ApiState | null>(null);
/** When the newest data came, by this page's clock in ms; 0: none yet. */
export const received = signal(0);
/** Reports of requests by engine. */
const reports = signal<ReadonlyMap<string, ApiRequests>>(new Map());
export const kept = signal<ApiKept | null>(null);
/** Newest last. */
export const events = signal<readonly ApiEvent[]>([]);
/** Events that the control plane left out because there were too many at once. */
export const eventsSkipped = signal(0);
/** Counts up with every round taken in. */
export const roundsSeen = signal(0);
export const rounds = new RoundBook();
export const telemetry = new Telemetry();
/** Counts up with every sample of the charts. */
export const samples = signal(0);

export const rows = computed<readonly Row[]>(() =>
  [...reports.value.values()].flatMap(({ engineId, requests }) =>
    requests.map((request) => toRow(engineId, request)),
  ),
);
export const omitted = computed(() =>
  [...reports.value.values()].reduce((sum, report) => sum + report.omitted, 0),
);
/** Tokens that would be resident now without compression; null while no engine reports requests. */
export const fullKv = computed<number | null>(() => {
  if (reports.value.size === 0) return null;
  return rows.value.reduce((sum, row) => sum + (row.state === "running" ? row.computed : 0), 0);
});

/** Takes in a message of the stream. */
export function take<K extends keyof ApiStream>(kind: K, data: ApiStream[K]): void {
  received.value = Date.now();
  const message = { kind, data } as {
    [P in keyof ApiStream]: { kind: P; data: ApiStream[P] };
  }[keyof ApiStream];
  switch (message.kind) {
    case "state":
      takeState(message.data);
      break;
    case "requests":
      reports.value = new Map(reports.value).set(message.data.engineId, message.data);
      break;
    case "kept":
      kept.value = message.data;
      break;
    case "events":
      takeEvents(message.data);
      break;
  }
}

function takeState(next: ApiState): void {
  const gone = [...reports.value.keys()].filter(
    (id) => !next.engines.some((engine) => engine.engineId === id && engine.connected),
  );
  if (gone.length > 0) {
    const left = new Map(reports.value);
    for (const id of gone) left.delete(id);
    reports.value = left;
  }
  state.value = next;
  stateReceived = Date.now();
  telemetry.add(next, fullByEngine());
  samples.value += 1;
}

/** An idle engine's state does not change and is not sent: the charts go on with the one that there is. */
export function carryOn(): void {
  const last = state.value;
  const since = Date.now() - stateReceived;
  if (last === null || connection.value.phase !== "live" || since < CARRY_MS) return;
  const time = new Date(Date.parse(last.time) + Date.now() - stateReceived).toISOString();
  telemetry.add({ ...last, time }, fullByEngine());
  samples.value += 1;
}

/** Tokens without compression, by engine; engines that report no requests are left out. */
function fullByEngine(): ReadonlyMap<string, number> {
  return new Map(
    [...reports.value].map(([id, report]) => [
      id,
      report.requests.reduce((sum, one) => sum + (one.state === "running" ? one.computed : 0), 0),
    ]),
  );
}

function takeEvents(batch: readonly ApiEvent[]): void {
  const before = events.value;
  const last = before.at(-1);
  const newest = batch.at(-1);
  if (newest === undefined) return;
  // Numbers start anew with a new control plane; what came from the one before has no place in its order.
  const anew = last !== undefined && newest.id <= last.id && newest.time > last.time;
  if (anew) rounds.clear();
  const fresh = anew || last === undefined ? batch : batch.filter(({ id }) => id > last.id);
  if (fresh.length === 0) return;
  const first = fresh[0]?.id ?? 0;
  if (anew) eventsSkipped.value = 0;
  else if (last !== undefined) eventsSkipped.value += first - last.id - 1;
  for (const event of fresh) rounds.add(event);
  roundsSeen.value += 1;
  const all = anew ? fresh : [...before, ...fresh];
  events.value = all.length > MOST_EVENTS ? all.slice(-MOST_EVENTS) : all;
}

/** Sums over the connected engines, for the strip. */
export const totals = computed(() => {
  const engines = (state.value?.engines ?? []).filter(({ connected }) => connected);
  const sum = (pick: (counters: NonNullable<(typeof engines)[number]["counters"]>) => string | number) =>
    engines.reduce((total, { counters }) => total + (counters === null ? 0 : toNumber(pick(counters))), 0);
  return {
    engines: engines.length,
    known: state.value?.engines.length ?? 0,
    running: sum((c) => c.running),
    waiting: sum((c) => c.waiting),
    resident: sum((c) => c.residentTokens),
    usedBlocks: sum((c) => c.usedBlocks),
    blocks: engines.reduce((total, { cache }) => total + cache.blocks, 0),
    tokensPerSecond: engines.reduce((total, engine) => total + engine.tokensPerSecond, 0),
    rounds: sum((c) => c.rounds),
    evicted: sum((c) => c.tokensEvicted),
    blocksReclaimed: sum((c) => c.blocksReclaimed),
    preemptions: sum((c) => c.preemptions),
    finished: sum((c) => c.requestsFinished),
  };
});

/** The row of a request; undefined when it is not there (any more). */
export const rowOf = (engineId: string, request: string): Row | undefined =>
  rows.value.find(({ key }) => key === keyOf(engineId, request));
