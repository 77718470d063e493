import type { Watch } from "@triattn/protocol";

/** What is wanted of engines beyond what they always report; it costs them something. */
export interface WatchOptions {
  /** The state of each request, twice a second, from every engine (`requests` in `events()`). */
  readonly requests?: boolean;
  /** What each round of one request keeps (`kept` in `events()`). An engine shows one request at a time. */
  readonly kept?: { readonly engineId: string; readonly request: string } | undefined;
}

/** Lasts until it is closed. */
export interface Watching {
  close(): void;
}

/** How long an engine reports unless asked again: if this process dies, it stops by itself. */
const LEASE_SECONDS = 6;
const RENEW_MS = 2000;

/** Keeps engines reporting for as long as somebody watches. */
export class Watches {
  readonly #wanted = new Set<WatchOptions>();
  readonly #engines: () => readonly string[];
  readonly #send: (engineId: string, watch: Watch) => void;
  #timer: NodeJS.Timeout | undefined;

  constructor(engines: () => readonly string[], send: (engineId: string, watch: Watch) => void) {
    this.#engines = engines;
    this.#send = send;
  }

  add(options: WatchOptions): Watching {
    // A copy, so that the same options twice are two watchers.
    const wanted = { ...options };
    this.#wanted.add(wanted);
    this.#timer ??= setInterval(() => this.renew(), RENEW_MS);
    this.renew();
    return {
      close: () => {
        if (!this.#wanted.delete(wanted)) return;
        this.renew(true);
        if (this.#wanted.size === 0) this.close();
      },
    };
  }

  /** An engine came: it does not know yet. */
  joined(engineId: string): void {
    const watch = this.#watch(engineId);
    if (watch.seconds > 0) this.#send(engineId, watch);
  }

  /** `end`: engines that nobody watches any more are told so. */
  renew(end = false): void {
    for (const engineId of this.#engines()) {
      const watch = this.#watch(engineId);
      if (watch.seconds > 0 || end) this.#send(engineId, watch);
    }
  }

  close(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#wanted.clear();
  }

  #watch(engineId: string): Watch {
    const all = [...this.#wanted];
    const requests = all.some((wanted) => wanted.requests === true);
    // Whoever asked last sees its request.
    const kept = all.findLast((wanted) => wanted.kept?.engineId === engineId)?.kept?.request ?? null;
    return { type: "watch", seconds: requests || kept !== null ? LEASE_SECONDS : 0, requests, kept };
  }
}
