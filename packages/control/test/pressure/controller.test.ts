import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { budgetIn, fit, nextPressure, type Setting, start } from "../../src/pressure/controller.ts";
import { bursts, steady, tide } from "./loads.ts";
import { type Arrival, type Machine, simulate, turns } from "./simulator.ts";

const machine: Machine = { blocks: 240, blockSize: 32, interval: 32, maxRunning: 64 };
const bounds = { min: 256, max: 2048 };
const settingOf = fc.record({
  bounds: fc
    .tuple(fc.integer({ min: 4, max: 256 }), fc.integer({ min: 0, max: 4096 }))
    .map(([min, more]) => ({ min: min * 16, max: (min + more) * 16 })),
  capacity: fc.integer({ min: 1000, max: 1_000_000 }),
  interval: fc.integer({ min: 1, max: 512 }),
});
const setting = ({
  bounds,
  ...rest
}: {
  bounds: { min: number; max: number };
  capacity: number;
  interval: number;
}): Setting => ({
  ...bounds,
  ...rest,
  block: 16,
});
const observation = fc.record({
  usage: fc.double({ min: 0, max: 1, noNaN: true }),
  running: fc.nat(200),
  waiting: fc.nat(200),
});

test("budgets stay inside their bounds, whatever is observed; more requests are never more budget", () => {
  fc.assert(
    fc.property(settingOf, fc.array(observation, { maxLength: 200 }), (some, seen) => {
      const given = setting(some);
      let now = start(given);
      for (const what of seen) {
        const worse = nextPressure(now, { ...what, usage: 1, waiting: what.waiting + 5 }, given);
        now = nextPressure(now, what, given);
        expect(worse.budget).toBeLessThanOrEqual(now.budget);
        expect(now.budget).toBeGreaterThanOrEqual(given.min);
        expect(now.budget).toBeLessThanOrEqual(given.max);
        const rule = budgetIn({ min: 100, max: 3000 }, now.budget, given);
        expect(rule >= 100 && rule <= 3000).toBe(true);
      }
    }),
  );
});

test("it shrinks at once, little by little, and grows only after a while", () => {
  const given: Setting = { min: 256, max: 2048, capacity: 10_000, block: 32, interval: 32 };
  const busy = { usage: 0.98, running: 10, waiting: 2 };
  // Where the longest may be: 1.8 times the mean of 980, and a little less.
  const shrunk = nextPressure({ ...start(given), usage: 0.97 }, busy, given);
  expect(shrunk).toMatchObject({ budget: 1664, reason: "cache full" });
  // What fits is small enough: 98 % of 10,000 for ten, less interval and block.
  expect(fit(busy, given)).toBeCloseTo(916);
  let now = shrunk;
  for (let i = 0; i < 50; i++) now = nextPressure(now, busy, given);
  expect(now.budget).toBe(896);
  // Usage that rises fast is seen coming.
  expect(nextPressure({ ...start(given), usage: 0.5 }, { ...busy, usage: 0.7 }, given).budget).toBeLessThan(
    2048,
  );
  // Between the marks nothing moves.
  expect(nextPressure(now, { usage: 0.8, running: 10, waiting: 0 }, given).budget).toBe(896);
  const calm = { usage: 0.2, running: 2, waiting: 0 };
  for (let i = 0; i < 2; i++) now = nextPressure(now, calm, given);
  expect(now.budget).toBe(896);
  expect(nextPressure(now, calm, given)).toMatchObject({ budget: 1504, reason: "room" });
  // While requests wait, or after one busy moment, the wait begins anew.
  expect(nextPressure(now, { ...calm, waiting: 1 }, given).budget).toBe(896);
  expect(nextPressure(nextPressure(now, { ...calm, usage: 0.9 }, given), calm, given).budget).toBe(896);
});

test("a load that does not change comes to rest: usage in proportion to budgets, wherever it begins", () => {
  const share = fc.double({ min: 0.01, max: 3, noNaN: true });
  fc.assert(
    fc.property(
      settingOf,
      share,
      fc.integer({ min: 1, max: 300 }),
      fc.double({ min: 0, max: 1 }),
      (some, atFit, running, begin) => {
        const given = setting(some);
        const from =
          given.min + Math.floor(((given.max - given.min) * (Number.isNaN(begin) ? 0 : begin)) / 16) * 16;
        let now = { ...start(given), budget: from };
        const budgets: number[] = [];
        for (let i = 0; i < 600; i++) {
          const usage = Math.min(1, (atFit * now.budget * running) / given.capacity);
          now = nextPressure(now, { usage, running, waiting: 0 }, given);
          budgets.push(now.budget);
        }
        // At most: down, then up to where it belongs; never round and round.
        expect(turns(budgets)).toBeLessThanOrEqual(1);
        expect(new Set(budgets.slice(-100)).size).toBe(1);
      },
    ),
  );
});

describe("on loads", () => {
  const loads: [name: string, load: readonly Arrival[], worth: number][] = [
    // Bursts that come when the long requests are done: what the controller is for.
    [
      "calm, then a burst",
      bursts(4, { at: 0, prompt: 100, output: 1500 }, { at: 0, prompt: 100, output: 900 }, 14, 4000),
      0.9,
    ],
    [
      "bursts of short ones",
      bursts(5, { at: 0, prompt: 100, output: 1800 }, { at: 0, prompt: 200, output: 300 }, 20, 2200),
      1.02,
    ],
    ["always the same", steady(100, 60, 100, 1000), 1.12],
  ];

  /** The least evicted by any fixed budget that preempts no more; known only afterwards. */
  function bestFixed(load: readonly Arrival[], most: number): number {
    const all = Array.from({ length: 57 }, (_, i) => simulate(load, machine, bounds.min + i * 32));
    return Math.min(...all.filter(({ preemptions }) => preemptions <= most).map(({ evicted }) => evicted));
  }

  test.each(loads)(
    "%s: evicts no more than the best fixed budget, times what it is worth",
    (_, load, worth) => {
      const { evicted, preemptions, budgets } = simulate(load, machine, bounds);
      for (const budget of budgets) expect(budget >= bounds.min && budget <= bounds.max).toBe(true);
      expect(preemptions).toBe(0);
      expect(evicted).toBeGreaterThan(0);
      expect(evicted).toBeLessThanOrEqual(bestFixed(load, preemptions) * worth);
    },
  );

  test("more than fits at the smallest budget: it stays there, as a fixed one would", () => {
    const { budgets } = simulate(tide(60, 100, 900), { ...machine, blocks: 80 }, bounds);
    expect(turns(budgets)).toBeLessThanOrEqual(3);
    expect(Math.min(...budgets)).toBe(bounds.min);
  });

  test("random loads: it turns round no more often than the load does", () => {
    const arrival = fc.record({
      at: fc.nat(3000),
      prompt: fc.integer({ min: 1, max: 500 }),
      output: fc.integer({ min: 1, max: 1500 }),
    });
    fc.assert(
      fc.property(fc.array(arrival, { minLength: 1, maxLength: 40 }), (load) => {
        const { budgets } = simulate(load, machine, bounds);
        // Each arrival and each end may bring one turn.
        expect(turns(budgets)).toBeLessThanOrEqual(2 * load.length);
      }),
      { numRuns: 40 },
    );
  });
});
