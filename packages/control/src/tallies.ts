import type { ControlEvent } from "./types.ts";

/** Reasons of skipped rounds by what an engine's words begin with: its words may name anything. */
const SKIP_REASONS = [
  ["no free block", "no_free_block"],
  ["policy", "no_statistics"],
] as const;

export type SkipReason = (typeof SKIP_REASONS)[number][1] | "other";

/** What only events tell, counted as they pass. */
export class Tallies {
  /** Rounds that engines put off, by reason; of the engines that are connected. */
  readonly skipped = new Map<string, Record<SkipReason, number>>();
  policiesReplaced = 0;
  policiesRefused = 0;
  enginesConnected = 0;

  add(event: ControlEvent): void {
    switch (event.type) {
      case "event": {
        if (event.event.kind !== "skip") return;
        const counts = this.skipped.get(event.engineId) ?? { no_free_block: 0, no_statistics: 0, other: 0 };
        counts[skipReason(event.event.reason)] += 1;
        this.skipped.set(event.engineId, counts);
        return;
      }
      case "disconnected":
        this.skipped.delete(event.engineId);
        return;
      case "connected":
        this.enginesConnected += 1;
        return;
      case "policy":
        this.policiesReplaced += 1;
        return;
      case "refused":
        this.policiesRefused += 1;
        return;
    }
  }
}

export function skipReason(words: string): SkipReason {
  return SKIP_REASONS.find(([start]) => words.startsWith(start))?.[1] ?? "other";
}
