import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Random } from "../../src/eval/random.ts";
import { drawTrace, traceTask, traceTasks } from "../../src/eval/tasks/index.ts";
import { gradeTrace, type Trace } from "../../src/eval/tasks/trace.ts";
import { decode, EOS, encode, vocabulary } from "../../src/eval/tasks/vocabulary.ts";

const draws = fc.record({
  task: fc.constantFrom(...traceTasks),
  split: fc.constantFrom("train" as const, "heldout" as const),
  seed: fc.nat(1000),
  index: fc.nat(100_000),
  length: fc.integer({ min: 100, max: 4000 }),
});

const item = (task: string, index: number, length = 400): Trace =>
  drawTrace(traceTask(task), { split: "heldout", seed: 1, index, length });

/** Everything that a prompt says, read anew. */
const promptLines = ({ prompt }: Trace) => prompt.trimEnd().split("\n").slice(1);

describe("every task", () => {
  test("the grader accepts the trace and rejects any change of one token", () => {
    fc.assert(
      fc.property(
        draws,
        fc.nat(),
        fc.nat(),
        fc.constantFrom("change", "drop", "add"),
        (draw, at, to, how) => {
          const trace = drawTrace(draw.task, draw);
          const tokens = encode(trace.expected);
          expect(gradeTrace(trace, decode([...tokens, EOS]), true)).toEqual({
            exact: true,
            answer: true,
            firstWrong: null,
          });
          expect(gradeTrace(trace, trace.expected, false).exact).toBe(false);
          const place = at % tokens.length;
          const other = 2 + (to % (vocabulary.length - 2));
          if (how === "change" && other === tokens[place]) return;
          const changed = tokens.toSpliced(place, how === "add" ? 0 : 1, ...(how === "drop" ? [] : [other]));
          const grade = gradeTrace(trace, decode(changed), true);
          expect(grade.exact).toBe(false);
          expect(grade.firstWrong).toBeGreaterThanOrEqual(place);
        },
      ),
      { numRuns: 300 },
    );
  });

  test("lengths are kept, drawing again gives the same, and nothing is in both splits", () => {
    fc.assert(
      fc.property(draws, (draw) => {
        const trace = drawTrace(draw.task, draw);
        const tokens = trace.expected.length + 1;
        expect(tokens).toBeLessThanOrEqual(draw.length);
        expect(tokens).toBeGreaterThanOrEqual(0.8 * draw.length);
        expect(trace.expected.endsWith(trace.answer)).toBe(true);
        expect(decode(encode(trace.prompt + trace.expected))).toBe(trace.prompt + trace.expected);
        expect(drawTrace(draw.task, draw)).toEqual(trace);
        const split = draw.split === "train" ? "heldout" : "train";
        expect(drawTrace(draw.task, { ...draw, split }).prompt).not.toBe(trace.prompt);
      }),
      { numRuns: 200 },
    );
  });
});

// Traces against a second derivation, from nothing but the prompt.

test("grammar: the value is the sum of all digits that the start expands to", () => {
  for (let index = 0; index < 40; index++) {
    const trace = item("grammar", index);
    const lines = promptLines(trace);
    const rules = new Map(lines.filter((l) => l[1] === "=").map((l) => [l[0], l.slice(2)]));
    const expand = (symbol: string): string =>
      [...(rules.get(symbol) ?? symbol)].map((i) => (rules.has(i) ? expand(i) : i)).join("");
    const digits = expand(lines.at(-1)?.[1] ?? "");
    expect(trace.answer).toBe(`=${[...digits].reduce((sum, d) => sum + Number(d), 0) % 10}\n`);
    // Lines that add a digit, in order, are the expansion.
    const added = trace.expected.split("\n").filter((l) => /^\d[A-Z]\d\d\d$/.test(l));
    expect(added.map((l) => l[3]).join("")).toBe(digits);
  }
});

test("dfs: the states are those of a recursive search, cut off after as many steps", () => {
  for (let index = 0; index < 40; index++) {
    const trace = item("dfs", index, 900);
    const lines = promptLines(trace);
    const graph = new Map(
      lines.filter((l) => l[1] === ":").map((l) => [l[0] as string, [...l.slice(2)].sort()]),
    );
    for (const [a, others] of graph) for (const b of others) expect(graph.get(b)).toContain(a);
    const states = lines
      .filter((l) => l.startsWith("?"))
      .map((l) => {
        let left = Number(l.slice(2));
        const visited: string[] = [];
        const stopped = (path: string[]): string[] | undefined => {
          const node = path.at(-1) as string;
          visited.push(node);
          if (left === 0) return path;
          for (const next of graph.get(node) ?? []) {
            if (visited.includes(next)) continue;
            left -= 1;
            const found = stopped([...path, next]);
            if (found !== undefined) return found;
            left -= 1;
            if (left === 0) return path;
          }
          return undefined;
        };
        const path = stopped([l[1] as string]);
        return `=${path?.at(-1)}|${path?.toReversed().join("")}|${visited.join("")}`;
      });
    expect(trace.expected.split("\n").filter((l) => l.startsWith("="))).toEqual(states);
  }
});

test.each(["passcode", "recall"])("%s: the answer is read off sums over the prompt's ring", (name) => {
  for (let index = 0; index < 40; index++) {
    const trace = item(name, index);
    const [ringText = "", ...lines] = promptLines(trace);
    const ring = [...ringText.matchAll(/[a-z](\d)/g)].map(([, digit]) => Number(digit));
    const steps = Number(lines.find((l) => l.startsWith("#"))?.slice(1));
    const sumAfter = (at: number) =>
      Array.from({ length: steps - at + 1 }, (_, i) => ring[i % ring.length] ?? 0).reduce((a, b) => a + b, 0);
    const values = new Map<string, number>();
    for (const [, at = "", keys = ""] of trace.prompt.matchAll(/@(\d{3})((?:[A-Z]\d)+)/g)) {
      let sum = sumAfter(Number(at));
      for (const [, key = "", digit = ""] of keys.matchAll(/([A-Z])(\d)/g)) {
        sum += Number(digit);
        values.set(key, sum % 10);
      }
    }
    const asked = [...(lines.at(-1) ?? "").slice(1)];
    expect(trace.answer).toBe(`?${asked.map((key) => `${key}${values.get(key)}`).join("")}\n`);
  }
});

test("numbers are the same on every machine", () => {
  const random = new Random("a seed");
  expect([random.whole(0, 999), random.whole(0, 999), random.whole(0, 999)]).toMatchInlineSnapshot(`
    [
      914,
      942,
      274,
    ]
  `);
  expect(
    drawTrace(traceTask("recall"), { split: "train", seed: 0, index: 0, length: 100 }).prompt,
  ).toMatchInlineSnapshot(`
    "R
    q5u8f4l1g8i7b0m2a3h6t7w0q
    @009U9
    @007R2
    @005A5
    @004W7
    #010
    ?UR
    "
  `);
});

test("a length or a task that cannot be is refused", () => {
  expect(() => item("grammar", 0, 8)).toThrow(/--length = 8: from 40 to 6500 tokens/);
  expect(() => traceTask("chess")).toThrow(/--task = chess: one of grammar, dfs, passcode, recall/);
});
