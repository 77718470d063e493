import { expect, test } from "vitest";
import { bootstrap, compare, wilson } from "../../src/eval/bootstrap.ts";
import { Progress } from "../../src/eval/progress.ts";
import { verdict } from "../../src/eval/report.ts";
import type { Row } from "../../src/eval/rows.ts";
import { coarseKl, fidelityTask } from "../../src/eval/tasks/fidelity.ts";

/** Smallest k at which the distribution of a binomial reaches `part`. */
function binomialQuantile(n: number, p: number, part: number): number {
  let [probability, total] = [(1 - p) ** n, (1 - p) ** n];
  let k = 0;
  while (total < part) {
    probability *= ((n - k) / (k + 1)) * (p / (1 - p));
    k += 1;
    total += probability;
  }
  return k;
}

test("bootstrap: the mean of zeros and ones, whose resampling is a binomial", () => {
  for (const [n, right] of [
    [50, 40],
    [200, 130],
    [24, 3],
  ] as const) {
    const values = Array.from({ length: n }, (_, i) => Number(i < right));
    const [low, high] = bootstrap(values, 1);
    expect(Math.abs(low * n - binomialQuantile(n, right / n, 0.025))).toBeLessThanOrEqual(1);
    expect(Math.abs(high * n - binomialQuantile(n, right / n, 0.975))).toBeLessThanOrEqual(1);
    expect(bootstrap(values, 1)).toEqual([low, high]);
  }
  expect(bootstrap([], 0)).toEqual([Number.NaN, Number.NaN]);
});

test("paired: differences of the same items, not of the means", () => {
  // Every item differs by exactly 0.1, however much items differ from each other.
  const of = Array.from({ length: 40 }, (_, i) => i);
  const { difference, ci95, above, below } = compare(
    of,
    of.map((value) => value - 0.1),
    3,
  );
  expect([difference, ...ci95]).toEqual([0.1, 0.1, 0.1].map((v) => expect.closeTo(v)));
  expect([above, below]).toEqual([40, 0]);
  expect(() => compare([1], [1, 2], 0)).toThrow(RangeError);
});

test("what is said of an interval: nothing where too few items differ", () => {
  const of = (n: number, by: number) => compare(Array(n).fill(by), Array(n).fill(0), 0);
  expect(verdict(of(6, 1), "more")).toBe("BETTER");
  expect(verdict(of(6, 1), "less")).toBe("WORSE");
  expect(verdict(of(6, -1), "more")).toBe("WORSE");
  expect(verdict(of(5, 1), "more")).toBe("too few to tell");
  expect(verdict(of(6, 0), "more")).toBe("same");
  expect(verdict(compare([1, -1, 1, -1, 1, -1], Array(6).fill(0), 0), "more")).toBe("not told apart");
});

test("wilson: against published values", () => {
  // Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20.
  expect(wilson(81, 263).map((v) => v.toFixed(4))).toEqual(["0.2553", "0.3662"]);
  expect(wilson(15, 148).map((v) => v.toFixed(4))).toEqual(["0.0624", "0.1605"]);
  expect(wilson(0, 20).map((v) => v.toFixed(4))).toEqual(["0.0000", "0.1611"]);
  expect(wilson(29, 29)[1]).toBe(1);
});

const at = (p: Record<string, number>) =>
  Object.fromEntries(Object.entries(p).map(([token, value]) => [token, { logprob: Math.log(value) }]));

test("KL over what both list and the rest: exact for whole distributions, never above them", () => {
  const [p, q] = [
    { 1: 0.5, 2: 0.3, 3: 0.2 },
    { 1: 0.25, 2: 0.25, 3: 0.5 },
  ];
  const whole = 0.5 * Math.log(2) + 0.3 * Math.log(0.3 / 0.25) + 0.2 * Math.log(0.2 / 0.5);
  expect(coarseKl(at(p), at(q))).toBeCloseTo(whole, 6);
  expect(coarseKl(at({ 1: 0.5, 2: 0.3 }), at({ 1: 0.25, 3: 0.5 }))).toBeLessThan(whole);
  expect(coarseKl(at({ 1: 0.5, 2: 0.3 }), at({ 1: 0.25, 3: 0.5 }))).toBeGreaterThan(0);
  expect(coarseKl(at(p), at(p))).toBe(0);
});

test("fidelity: agreement, negative log-likelihood and the first divergence, from the first counted position", () => {
  const task = fidelityTask({ text: "", source: "", length: 5, limit: 1, from: 2 });
  const reply = (positions: Record<string, number>[]) => ({
    text: "",
    tokens: [],
    finish: "length",
    promptLogprobs: [null, ...positions.map(at)],
  });
  const item = { id: "0", prompt: [1, 1, 1, 2, 1], sizes: { prompt: 5, generated: 0 }, maxTokens: 1 };
  const full = reply([{ 2: 1 }, { 1: 0.9, 2: 0.1 }, { 1: 0.5, 2: 0.4 }, { 1: 0.7, 2: 0.3 }]);
  const own = reply([{ 1: 1 }, { 1: 0.8, 2: 0.2 }, { 1: 0.3, 2: 0.6 }, { 1: 0.7, 2: 0.3 }]);
  const figures = task.grade(item, own, full);
  expect(figures.agreement).toBeCloseTo(2 / 3);
  expect(figures.firstDivergence).toBe(1);
  expect(figures.nll).toBeCloseTo(-Math.log(0.8 * 0.6 * 0.7) / 3);
  expect(task.grade(item, full, full)).toMatchObject({ agreement: 1, kl: 0, firstDivergence: 3 });
});

test("progress: one line that changes on a terminal, plain lines elsewhere, with what is left", () => {
  const row = { arm: "keydiff", task: "dfs" } as Row;
  let time = 0;
  const said = (terminal: boolean) => {
    const written: string[] = [];
    time = 0;
    const progress = new Progress({
      total: 10,
      resumed: 2,
      terminal,
      write: (t) => written.push(t),
      now: () => time,
    });
    progress.begin();
    for (let i = 0; i < 8; i++) {
      time += 3000;
      progress.done(row);
    }
    progress.end();
    return written;
  };
  expect(said(true)[0]).toBe("\r\x1b[2K3 of 10 rows, keydiff on dfs; 21 s left");
  const plain = said(false);
  expect(plain).toHaveLength(3);
  expect(plain.at(-1)).toBe("10 of 10 rows, keydiff on dfs; 0 s left\n");
});
