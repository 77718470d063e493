import fc from "fast-check";
import { expect, test } from "vitest";
import { diffLines, hunks } from "../../src/lib/diff.ts";
import { compact, modelName, percent, rate, seconds } from "../../src/lib/format.ts";
import { lineOfPath, parseJson, tokens } from "../../src/lib/json.ts";
import { formatRoute, parseRoute } from "../../src/lib/route.ts";
import { fromRules, toRules } from "../../src/lib/rules.ts";

test("numbers are short and never lie about zero", () => {
  expect([0, 9999, 12_345, 999_600, 1.25e6, 3e12].map(compact)).toEqual([
    "0",
    "9,999",
    "12.3k",
    "1.00M",
    "1.25M",
    "3.00T",
  ]);
  expect([0, 0.004, 0.123, 12.34, 123.4].map(rate)).toEqual(["0", "0.00", "0.12", "12.3", "123"]);
  expect([0, 0.0002, 0.042, 0.87, 1].map(percent)).toEqual(["0 %", "<0.1 %", "4.2 %", "87 %", "100 %"]);
  expect([0.4, 12, 200, 7500].map(seconds)).toEqual(["0.4 s", "12 s", "3 min 20 s", "2 h 5 min"]);
  expect(["/a/b/Smol", "./Smol/", "Qwen/Qwen3-8B"].map(modelName)).toEqual(["Smol", "Smol", "Qwen/Qwen3-8B"]);
  expect([compact(Number.NaN), rate(Number.NaN), percent(Number.NaN)]).toEqual(["–", "–", "–"]);
});

test("a diff says how to get from one text to the other, in the fewest lines", () => {
  const lines = fc.array(fc.constantFrom("a", "b", "c", ""), { maxLength: 12 });
  fc.assert(
    fc.property(lines, lines, (a, b) => {
      const [from, to] = [a.join("\n"), b.join("\n")];
      const diff = diffLines(from, to);
      const side = (gone: string) =>
        diff.flatMap(({ kind, text }) => (kind === gone ? [] : [text])).join("\n");
      expect(side("added")).toBe(from);
      expect(side("removed")).toBe(to);
      if (from === to) expect(diff.every(({ kind }) => kind === "same")).toBe(true);
    }),
  );
  const same = Array.from({ length: 9 }, (_, i) => `${i}`).join("\n");
  expect(hunks(diffLines(same, same.replace("4", "x")), 1).map((line) => line?.text ?? "…")).toEqual([
    ..."…34x5",
    "…",
  ]);
});

test("tokens of any text join to it, and what is wrong in JSON has a line", () => {
  const text = fc.oneof(fc.json(), fc.string(), fc.stringMatching(/^[{}[\]",:a1\s\\-]*$/));
  fc.assert(
    fc.property(text, (any) => {
      expect(
        tokens(any)
          .map((token) => token.text)
          .join(""),
      ).toBe(any);
    }),
  );
  fc.assert(
    fc.property(fc.json(), (json) => {
      expect(parseJson(json)).toEqual({ value: JSON.parse(json) });
    }),
  );
  expect(parseJson('{\n  "a": 1,\n  "b" 2\n}')).toMatchObject({ line: 3 });
  expect(parseJson('{\n  "a": 1,\n}')).toMatchObject({ line: 3 });
  expect(parseJson('{\n  "a": [1, 2\n')).toMatchObject({ line: 3 });
  expect(parseJson("")).toMatchObject({ line: 1 });
});

test("a field's path leads to its line", () => {
  const text = JSON.stringify(
    { name: "x", terms: [{ kind: "trig" }, { kind: "norm", weight: 2 }], pin: { window: 1 } },
    null,
    2,
  );
  const line = (path: string) => text.split("\n")[(lineOfPath(text, path) ?? 0) - 1]?.trim();
  expect(line("name")).toBe('"name": "x",');
  expect(line("terms.1.weight")).toBe('"weight": 2');
  expect(line("terms.0")).toBe("{");
  expect(line("pin.window")).toBe('"window": 1');
  expect(lineOfPath(text, "pin.sinks")).toBeUndefined();
});

test("addresses say what is shown, whatever a request is called", () => {
  fc.assert(
    fc.property(fc.string({ minLength: 1 }), fc.string({ minLength: 1 }), (engineId, request) => {
      const route = { view: "requests", engineId, request } as const;
      expect(parseRoute(formatRoute(route))).toEqual(route);
    }),
  );
  expect(parseRoute("")).toEqual({ view: "overview" });
  expect(parseRoute("#/nonsense")).toEqual({ view: "overview" });
  expect(parseRoute("#/requests/%E0%A4%A/x")).toEqual({
    view: "requests",
    engineId: "%E0%A4%A",
    request: "x",
  });
});

test("rules survive the form", () => {
  const rules = [
    { name: "a", match: { model: "qwen*", priority: { min: -1, max: 0 }, tags: ["x", "y"] }, budget: 0 },
    { name: "b", match: {}, policy: "keydiff" },
    { name: "c", match: { tags: ["z"] }, budget: 512, policy: { name: "own", terms: [{ kind: "random" }] } },
  ] as const;
  expect(toRules(fromRules(rules))).toEqual(rules);
});
