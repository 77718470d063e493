import type { ApiStream } from "@triattn/protocol";
import { createParser } from "eventsource-parser";
import { authorization, refused } from "./token.ts";

export type Phase = "connecting" | "live" | "reconnecting" | "unauthorized";

export interface ConnectionStatus {
  readonly phase: Phase;
  /** Why the stream ended, where it did. */
  readonly reason: string | null;
  /** When it is tried again, in ms since the epoch. */
  readonly retryAt: number | null;
}

export interface ConnectionHandlers {
  message<K extends keyof ApiStream>(kind: K, data: ApiStream[K]): void;
  status(status: ConnectionStatus): void;
}

const KINDS: readonly (keyof ApiStream)[] = ["state", "requests", "kept", "events"];
const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 10_000;
/** A stream silent for so long is taken as broken; the control plane sends something more often than that. */
const SILENCE_MS = 30_000;

/** How long to wait before try number `attempt`, from 0: doubled each time, up to ten seconds. */
export const retryDelay = (attempt: number): number =>
  Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** attempt);

/** The stream of `GET /api/events`, opened again whenever it ends. */
export class Connection {
  readonly #handlers: ConnectionHandlers;
  #kept: string | null = null;
  #abort: AbortController | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #attempt = 0;
  #lastId: string | undefined;
  #live = false;

  constructor(handlers: ConnectionHandlers) {
    this.#handlers = handlers;
  }

  /** Opens the stream, at once, whatever was waited for. */
  open(): void {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.#abort = new AbortController();
    if (!this.#live) this.#say(this.#attempt === 0 ? "connecting" : "reconnecting", null, null);
    void this.#read(this.#abort.signal);
  }

  /** Asks for what the rounds of a request keep: ENGINE/REQUEST, or null for none. */
  watch(kept: string | null): void {
    if (kept === this.#kept) return;
    this.#kept = kept;
    if (this.#abort !== undefined) this.open();
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.#live = false;
  }

  async #read(signal: AbortSignal): Promise<void> {
    let reason = "the control plane closed the stream";
    let watchdog: ReturnType<typeof setTimeout> | undefined;
    const broken = new AbortController();
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => broken.abort(), SILENCE_MS);
    };
    try {
      alive();
      const query = new URLSearchParams({ requests: "1", ...(this.#kept && { kept: this.#kept }) });
      const response = await fetch(`/api/events?${query}`, {
        headers: {
          accept: "text/event-stream",
          ...authorization(),
          ...(this.#lastId === undefined ? {} : { "last-event-id": this.#lastId }),
        },
        cache: "no-store",
        signal: AbortSignal.any([signal, broken.signal]),
      });
      if (response.status === 401) {
        this.#live = false;
        refused();
        this.#say("unauthorized", "the control plane wants a token", null);
        return;
      }
      if (!response.ok || response.body === null) {
        throw new Error(`the control plane answered ${response.status}`);
      }
      const parser = createParser({
        onEvent: ({ event, data, id }) => {
          if (id !== undefined) this.#lastId = id;
          const kind = KINDS.find((one) => one === event);
          if (kind !== undefined) this.#handlers.message(kind, JSON.parse(data));
        },
      });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        alive();
        this.#attempt = 0;
        if (!this.#live) this.#say("live", null, null);
        this.#live = true;
        parser.feed(value);
      }
    } catch (error) {
      if (signal.aborted) return;
      reason = broken.signal.aborted ? "nothing came for 30 s" : describe(error as Error);
    } finally {
      clearTimeout(watchdog);
    }
    if (signal.aborted) return;
    this.#live = false;
    const delay = retryDelay(this.#attempt);
    this.#attempt += 1;
    this.#say("reconnecting", reason, Date.now() + delay);
    this.#timer = setTimeout(() => this.open(), delay);
  }

  #say(phase: Phase, reason: string | null, retryAt: number | null): void {
    this.#handlers.status({ phase, reason, retryAt });
  }
}

/** Browsers name a connection that failed by a TypeError with words of their own. */
const describe = (error: Error): string =>
  error.name === "TypeError" ? "the control plane cannot be reached" : error.message;
