import type { ApiEvent } from "@triattn/protocol";
import { keyOf } from "./requests.ts";

/** A round of one request, from its event. Counts in tokens and blocks. */
export interface Round {
  readonly id: number;
  readonly time: string;
  readonly step: number;
  readonly revision: number;
  readonly budget: number;
  /** Logical length at the round. */
  readonly computed: number;
  readonly evicted: number;
  /** Tokens evicted so far, this round included. */
  readonly evictedTotal: number;
  readonly blocksReclaimed: number;
  readonly blocksCopied: number;
}

const MOST_REQUESTS = 4096;
const MOST_ROUNDS = 512;

/** Rounds by request, from the events seen: the newest of each, and the requests that had one last. */
export class RoundBook {
  readonly #byKey = new Map<string, Round[]>();

  add(event: ApiEvent): void {
    if (event.kind !== "round" || event.engineId === null || event.request === null) return;
    const key = keyOf(event.engineId, event.request);
    const rounds = this.#byKey.get(key) ?? [];
    const number = (name: string) => Number(event.data[name] ?? 0);
    const round: Round = {
      id: event.id,
      time: event.time,
      step: number("step"),
      revision: number("revision"),
      budget: number("budget"),
      computed: number("computed"),
      evicted: number("evicted"),
      evictedTotal: number("evictedTotal"),
      blocksReclaimed: number("blocksReclaimed"),
      blocksCopied: number("blocksCopied"),
    };
    // A preempted request starts anew: its history is another one.
    const fresh = (rounds.at(-1)?.evictedTotal ?? 0) >= round.evictedTotal;
    const kept = fresh ? [round] : [...rounds.slice(1 - MOST_ROUNDS), round];
    this.#byKey.delete(key);
    this.#byKey.set(key, kept);
    if (this.#byKey.size <= MOST_REQUESTS) return;
    const [oldest] = this.#byKey.keys();
    if (oldest !== undefined) this.#byKey.delete(oldest);
  }

  get(key: string): readonly Round[] {
    return this.#byKey.get(key) ?? [];
  }

  clear(): void {
    this.#byKey.clear();
  }
}

/** A corner of the line of resident tokens over the logical length. */
export interface Corner {
  readonly computed: number;
  readonly resident: number;
}

/** The saw-tooth that rounds make: up token by token, down by what a round evicts, on to the present length. */
export function sawtooth(rounds: readonly Round[], now: Corner | undefined): Corner[] {
  const first = rounds[0];
  if (first === undefined) return now === undefined ? [] : [{ computed: 0, resident: 0 }, now];
  const before = first.evictedTotal - first.evicted;
  // Rounds from before this page watched are not known: the line starts with the first that is.
  const corners: Corner[] = before === 0 ? [{ computed: 0, resident: 0 }] : [];
  for (const { computed, evicted, evictedTotal } of rounds) {
    corners.push({ computed, resident: computed - evictedTotal + evicted });
    corners.push({ computed, resident: computed - evictedTotal });
  }
  const last = rounds.at(-1);
  if (now !== undefined && last !== undefined && now.computed >= last.computed) corners.push(now);
  return corners;
}
