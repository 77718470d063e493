import type { Logger } from "pino";

/** Why a frame was dropped. */
export type DropKind =
  /** Not one payload frame. */
  | "framing"
  /** Larger than a message may be. */
  | "oversized"
  /** Not MessagePack. */
  | "malformed"
  /** MessagePack, but not a message of the protocol. */
  | "invalid"
  /** A hello of another protocol version. */
  | "version"
  /** From a peer that has not said hello. */
  | "unknown"
  /** More than one connection may send. */
  | "flooding"
  /** More engines than may connect. */
  | "crowded"
  /** A second engine under an id that is in use. */
  | "duplicate"
  /** A connection refused for its key. */
  | "unauthenticated";

/** Counts what is dropped and logs the first of each kind: a broken peer must not fill the log. */
export class Drops {
  readonly #logger: Logger;
  readonly #counts: Record<DropKind, number> = {
    framing: 0,
    oversized: 0,
    malformed: 0,
    invalid: 0,
    version: 0,
    unknown: 0,
    flooding: 0,
    crowded: 0,
    duplicate: 0,
    unauthenticated: 0,
  };

  constructor(logger: Logger) {
    this.#logger = logger;
  }

  count(kind: DropKind, detail: string): void {
    this.#counts[kind] += 1;
    if (this.#counts[kind] === 1) {
      this.#logger.warn({ kind, detail: detail.slice(0, 500) }, `dropped a frame: ${kind} (logged once)`);
    }
  }

  get counts(): Readonly<Record<DropKind, number>> {
    return { ...this.#counts };
  }
}
