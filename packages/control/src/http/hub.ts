import type { ServerResponse } from "node:http";
import type { ApiState, RequestState, RequestsReport } from "@triattn/protocol";
import type { ControlPlane } from "../control-plane.ts";
import type { ControlEvent } from "../types.ts";
import { version } from "../version.ts";
import type { WatchOptions } from "../watches.ts";
import { EventLog } from "./event-log.ts";
import { Rates } from "./rates.ts";
import { engineView, keptView, policyView, requestsView } from "./views.ts";

const STATE_MS = 500;
const BATCH_MS = 100;
const KEEP_ALIVE_MS = 15_000;
/** Events in one batch, and those that a new stream begins with. */
const MOST_EVENTS = 500;
const FIRST_EVENTS = 200;
/** A reader with so much unread gets no state for a while; with four times as much it is cut off. */
const BACKLOG_BYTES = 1 << 20;
/** A report of requests older than this is asked for again. */
const FRESH_MS = 1000;

export interface StreamOptions extends WatchOptions {
  /** Number of the last event that the reader has; undefined for a new one. */
  readonly lastEventId?: number | undefined;
}

interface Stream {
  readonly response: ServerResponse;
  readonly options: StreamOptions;
  lastEvent: number;
  /** The state that it has, without its time. */
  state: string;
}

interface Report {
  readonly at: number;
  readonly report: RequestsReport & { readonly engineId: string };
}

/** Follows the control plane's events and tells them to the streams of `GET /api/events`. */
export class Hub {
  readonly log = new EventLog();
  readonly #plane: ControlPlane;
  readonly #events: AsyncIterableIterator<ControlEvent, undefined>;
  readonly #streams = new Set<Stream>();
  readonly #rates = new Rates();
  readonly #requests = new Map<string, Report>();
  readonly #kept = new Map<string, ControlEvent & { type: "kept" }>();
  #timers: NodeJS.Timeout[] = [];

  constructor(plane: ControlPlane) {
    this.#plane = plane;
    this.#events = plane.events();
    void this.#follow();
  }

  get streams(): number {
    return this.#streams.size;
  }

  state(): ApiState {
    const { policy } = this.#plane;
    const now = performance.now();
    return {
      version,
      time: new Date().toISOString(),
      policy: policy === undefined ? null : policyView(policy),
      engines: this.#plane
        .engines()
        .map((engine) => engineView(engine, this.#rates.of(engine.engineId, now))),
      controller: this.#plane.pressure ?? null,
    };
  }

  /** Writes to a response until either side ends it. */
  attach(response: ServerResponse, options: StreamOptions): void {
    const watching = options.requests || options.kept ? this.#plane.watch(options) : undefined;
    const { lastEventId } = options;
    // A number from a control plane before this one means nothing here.
    const known = lastEventId !== undefined && lastEventId <= this.log.last ? lastEventId : undefined;
    const stream: Stream = { response, options, lastEvent: known ?? this.log.last - FIRST_EVENTS, state: "" };
    this.#streams.add(stream);
    if (this.#timers.length === 0) this.#start();
    response.on("error", () => {});
    response.once("close", () => {
      watching?.close();
      this.#streams.delete(stream);
      if (this.#streams.size === 0) this.#stop();
    });
    this.#sendState([stream]);
    this.#sendEvents(stream);
    for (const report of this.#kept.values()) this.#sendKept(report, [stream]);
  }

  /** States of each connected engine's requests, not older than a second where they come in `timeoutMs`. */
  async requests(timeoutMs = 1500): Promise<ReadonlyMap<string, readonly RequestState[]>> {
    const engines = this.#plane.engines().filter(({ connected }) => connected);
    const fresh = () =>
      engines.every(
        ({ engineId }) => (this.#requests.get(engineId)?.at ?? -Infinity) > performance.now() - FRESH_MS,
      );
    const watching = this.#plane.watch({ requests: true });
    const end = performance.now() + timeoutMs;
    while (!fresh() && performance.now() < end) await new Promise((wake) => setTimeout(wake, 25));
    watching.close();
    const oldest = performance.now() - timeoutMs - FRESH_MS;
    const reports = [...this.#requests].filter(([, { at }]) => at > oldest);
    return new Map(reports.map(([engineId, { report }]) => [engineId, report.requests]));
  }

  async close(): Promise<void> {
    this.#stop();
    for (const { response } of this.#streams) response.end();
    await this.#events.return?.();
  }

  async #follow(): Promise<void> {
    for await (const event of this.#events) {
      this.log.add(event);
      switch (event.type) {
        case "counters":
          this.#rates.add(event.engineId, event.counters.tokensGenerated, performance.now());
          break;
        case "requests":
          this.#requests.set(event.engineId, { at: performance.now(), report: event });
          this.#broadcast(
            "requests",
            () => requestsView(event),
            ({ requests }) => requests === true,
          );
          break;
        case "kept":
          this.#kept.set(event.engineId, event);
          this.#sendKept(event, this.#streams);
          break;
        case "disconnected":
          this.#rates.forget(event.engineId);
          this.#requests.delete(event.engineId);
          this.#kept.delete(event.engineId);
          break;
      }
    }
  }

  #sendKept(event: ControlEvent & { type: "kept" }, streams: Iterable<Stream>): void {
    const wanted = ({ kept }: StreamOptions) =>
      kept?.engineId === event.engineId && kept.request === event.request;
    this.#broadcast("kept", () => keptView(event), wanted, streams);
  }

  /** To those that want it; written out once. */
  #broadcast(
    name: string,
    data: () => unknown,
    wants: (options: StreamOptions) => boolean,
    streams: Iterable<Stream> = this.#streams,
  ): void {
    let text: string | undefined;
    for (const stream of streams) {
      if (!wants(stream.options) || stream.response.writableLength > BACKLOG_BYTES) continue;
      text ??= `event: ${name}\ndata: ${JSON.stringify(data())}\n\n`;
      stream.response.write(text);
    }
  }

  #sendState(streams: Iterable<Stream>): void {
    const { time, ...rest } = this.state();
    const state = JSON.stringify(rest);
    const text = `event: state\ndata: ${JSON.stringify({ time, ...rest })}\n\n`;
    for (const stream of streams) {
      if (stream.state === state || stream.response.writableLength > BACKLOG_BYTES) continue;
      stream.state = state;
      stream.response.write(text);
    }
  }

  #sendEvents(stream: Stream): void {
    const events = this.log.after(stream.lastEvent, MOST_EVENTS);
    if (events.length === 0) return;
    stream.lastEvent = this.log.last;
    if (stream.response.writableLength > 4 * BACKLOG_BYTES) {
      // It comes back, and says which event it has.
      stream.response.destroy();
      return;
    }
    stream.response.write(`id: ${this.log.last}\nevent: events\ndata: ${JSON.stringify(events)}\n\n`);
  }

  #start(): void {
    this.#timers = [
      setInterval(() => this.#sendState(this.#streams), STATE_MS),
      setInterval(() => {
        for (const stream of this.#streams) this.#sendEvents(stream);
      }, BATCH_MS),
      setInterval(() => {
        for (const { response } of this.#streams) response.write(": still here\n\n");
      }, KEEP_ALIVE_MS),
    ];
  }

  #stop(): void {
    for (const timer of this.#timers) clearInterval(timer);
    this.#timers = [];
  }
}
