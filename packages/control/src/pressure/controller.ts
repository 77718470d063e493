/** How pressed an engine is. */
export interface Observation {
  /** Blocks in use over blocks of the cache, 0 … 1. */
  readonly usage: number;
  readonly running: number;
  readonly waiting: number;
}

/** What does not change. */
export interface Setting {
  /** Smallest and largest KV budget in tokens. */
  readonly min: number;
  readonly max: number;
  /** Tokens that the cache holds, tokens of a block, and the policy's interval. */
  readonly capacity: number;
  readonly block: number;
  readonly interval: number;
}

export type Bounds = Pick<Setting, "min" | "max">;

export interface Pressure {
  /** Tokens, inside the bounds. */
  readonly budget: number;
  /** Usage at the last observation. */
  readonly usage: number;
  /** Observations in a row that left room, and the largest budget that all of them allowed. */
  readonly calm: number;
  readonly room: number;
  readonly reason: "start" | "cache full" | "room" | "steady";
}

/** Usage that is foreseen so many observations ahead, from which budgets shrink, and to which. */
const AHEAD = 3;
const FULL = 0.98;
const AIM = 0.97;
/** Usage from which they shrink whatever fits: something else fills the cache. */
const OVERFULL = 0.99;
/** Usage that growing may lead to. */
const AFTER_GROWTH = 0.75;
/** How much longer than the mean the longest requests are taken to be. */
const LONGEST = 1.8;
/** Growing waits for so many calm observations, and for so much to be gained. */
const CALM = 3;
const WORTH = 1.15;

/** Whatever usage is seen first is no rise. */
export const start = ({ max }: Bounds): Pressure => ({
  budget: max,
  usage: 1,
  calm: 0,
  room: max,
  reason: "start",
});

/** The budget at which all running requests fit at their fullest: budget, interval, and a block begun. */
export function fit({ running }: Observation, { capacity, interval, block }: Setting): number {
  return (FULL * capacity) / Math.max(1, running) - interval - block;
}

/**
 * The next budget. It shrinks at once, for a cache that overflows preempts, and little by little: what was evicted is
 * gone, what was not yet can still be. It grows after a while, to what fitted all that while, and no further than
 * usage in proportion would bear, so that growing cannot by itself bring about the pressure that would take it back.
 */
export function nextPressure(now: Pressure, seen: Observation, setting: Setting): Pressure {
  const { usage, running } = seen;
  const within = (tokens: number) =>
    Math.max(setting.min, Math.min(setting.max, Math.floor(tokens / setting.block) * setting.block));
  const rest = { usage, calm: 0, room: setting.max };
  const foreseen = usage + AHEAD * Math.max(0, usage - now.usage);
  if (foreseen >= FULL) {
    // A budget above what any request has would shrink for long without any effect.
    const longest = (LONGEST * usage * setting.capacity) / Math.max(1, running);
    const aimed = (Math.min(now.budget, longest) * AIM) / foreseen;
    const budget = Math.min(now.budget, within(Math.max(aimed, fit(seen, setting))));
    return {
      ...rest,
      budget: usage >= OVERFULL ? Math.min(budget, within(now.budget * AIM)) : budget,
      reason: "cache full",
    };
  }
  // Nor may what growing adds be taken for a load that rises.
  const led = Math.min(AFTER_GROWTH, (AFTER_GROWTH + AHEAD * usage) / (1 + AHEAD));
  const bearable = (now.budget * led) / Math.max(usage, 0.01);
  const room = Math.min(now.room, within(bearable));
  const worth = room > now.budget && (room >= now.budget * WORTH || room === setting.max);
  if (!worth || seen.waiting > 0) return { ...rest, budget: now.budget, reason: "steady" };
  if (now.calm + 1 < CALM) return { usage, budget: now.budget, calm: now.calm + 1, room, reason: "steady" };
  return { ...rest, budget: room, reason: "room" };
}

/** The budget of a rule with bounds of its own, as far between them as `budget` is between its own (in ratios). */
export function budgetIn(own: Bounds, budget: number, { min, max, block }: Setting): number {
  const part = max > min ? Math.log(max / budget) / Math.log(max / min) : 1;
  const exact = own.max * (own.min / own.max) ** part;
  return Math.max(own.min, Math.min(own.max, Math.floor(exact / block) * block));
}
