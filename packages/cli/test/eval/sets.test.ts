import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { aimeAnswer, boxed, finalAnswer, mathEngine, sameAnswer } from "../../src/eval/sets/math.ts";
import * as metric from "../../src/eval/sets/metrics.ts";
import { letter, readSet } from "../../src/eval/sets/tasks.ts";
import type { Item, Tokenizer } from "../../src/eval/task.ts";
import { TemporaryDirectory } from "../helpers.ts";

interface Case {
  readonly given: string;
  readonly wanted: string;
  readonly rougeL: number;
  readonly similarity: number;
}
const { cases } = JSON.parse(readFileSync(join(import.meta.dirname, "fixtures", "metrics.json"), "utf8")) as {
  cases: Case[];
};

test("ROUGE-L and difflib's ratio: as the published packages compute them", () => {
  for (const { given, wanted, rougeL, similarity } of cases) {
    expect([given, metric.rougeL(given, wanted)]).toEqual([given, expect.closeTo(rougeL, 6)]);
    expect([given, metric.similarity(given, wanted)]).toEqual([given, expect.closeTo(similarity, 10)]);
  }
});

test("the other metrics of LongBench and RULER", () => {
  expect(metric.qaF1("The cat, a black one.", "black cat")).toBeCloseTo(0.8);
  expect(metric.qaF1("dog", "cat")).toBe(0);
  expect(metric.classification("It is a Human group.", "Human group", ["Human group", "Human", "City"])).toBe(
    1,
  );
  expect(metric.classification("City or Human", "City", ["Human", "City"])).toBe(0.5);
  expect(metric.numbers("3 or 4", "4")).toBe(0.5);
  expect(metric.numbers("none", "4")).toBe(0);
  expect(metric.retrieval("Paragraph 12", "Paragraph 12")).toBe(1);
  expect(metric.codeSimilarity("\n# a comment\nreturn x\n", "return x")).toBe(1);
  expect(metric.ruler("niah_multivalue", "They are 12 and 34.", ["12", "34", "56", "78"])).toBe(0.5);
  expect(metric.ruler("qa_1", "In PARIS.", ["London", "paris"])).toBe(1);
});

test("answers are found", () => {
  expect(boxed("so \\boxed{1} and \\boxed{\\frac{1}{2}} end")).toBe("\\frac{1}{2}");
  expect(boxed("never \\boxed{closed")).toBeUndefined();
  expect(finalAnswer("It is 5, no, 1,234.5")).toBe("1,234.5");
  expect(aimeAnswer("\\boxed{042}")).toBe(42);
  expect(aimeAnswer("\\boxed{4.5}")).toBeUndefined();
  expect(letter("… so the answer is (C).")).toBe("C");
  expect(letter("\\boxed{\\text{B}}")).toBe("B");
  expect(letter("I do not know")).toBeUndefined();
});

test.each<[string, string, boolean]>([
  ["\\frac{1}{2}", "0.5", true],
  ["\\dfrac{\\sqrt{3}}{2}", "\\frac{\\sqrt3}{2}", true],
  ["2\\sqrt{5}", "\\sqrt{20}", true],
  ["(x+1)^2", "x^2+2x+1", true],
  ["(x+1)^2", "x^2+x+1", false],
  ["\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\pi/2)", true],
  ["(2,1)", "(1,2)", false],
  ["1,000", "1000", true],
  ["90^\\circ", "90", true],
  ["x = 5", "5", true],
  ["6-5i", "-5i+6", true],
  ["\\text{Evelyn}", "Evelyn", true],
  ["\\text{Angela}", "Evelyn", false],
  ["10\\%", "10", true],
  ["0.333", "\\frac13", false],
  ["[0,1)", "[0,1]", false],
  ["\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", true],
  ["\\frac{", "1", false],
])(
  "%s and %s: the same %s",
  async (given, wanted, same) => {
    expect(sameAnswer(await mathEngine(), given, wanted)).toBe(same);
    // The first one loads the library.
  },
  60_000,
);

const tokenizer: Tokenizer = {
  encode: async (text) => [...text].map((c) => c.codePointAt(0) ?? 0),
  chat: async (text) => [0, ...[...text].map((c) => c.codePointAt(0) ?? 0)],
};
const options = { limit: 10, seed: 0, maxTokens: 50, temperature: 0, topP: 0.95, samples: 1 };
const reply = (text: string) => ({ text, tokens: [1], finish: "stop", promptLogprobs: null });

test("sets are read from files, asked and graded", async () => {
  using directory = new TemporaryDirectory();
  const lines = (name: string, ...records: object[]) =>
    directory.write(name, records.map((record) => `${JSON.stringify(record)}\n`).join(""));
  const files = {
    aime24: lines("aime.jsonl", { ID: "2024-I-1", Problem: "1 + 1?", Answer: 2 }),
    "math-500": lines("math.jsonl", { problem: "Half?", answer: "\\frac12", unique_id: "t/1" }),
    gpqa: lines("gpqa.jsonl", {
      Question: "Which?",
      "Correct Answer": "this",
      "Incorrect Answer 1": "x",
      "Incorrect Answer 2": "y",
      "Incorrect Answer 3": "z",
    }),
    longbench: lines("long.jsonl", {
      input: "Who?",
      context: "Text with {input}.",
      answers: ["Ann", "Ann Lee"],
      dataset: "triviaqa",
      all_classes: null,
    }),
    "longbench-prompts": directory.write("prompts.json", JSON.stringify({ triviaqa: "{context}|{input}" })),
    ruler: lines("niah_single_1.jsonl", { index: 3, input: "Find it:", outputs: ["77"] }),
  };
  const first = async (name: string) => {
    const task = await readSet(name, { ...options, files });
    const [item] = (await task.items(tokenizer)) as [Item];
    return {
      task,
      item,
      grade: (text: string) => Object.values(task.grade(item, reply(text), undefined))[0],
    };
  };
  const aime = await first("aime24");
  expect([aime.item.id, aime.item.prompt[0], aime.task.published?.length]).toEqual(["2024-I-1", 0, 5]);
  expect([aime.grade("\\boxed{2}"), aime.grade("\\boxed{3}")]).toEqual([1, 0]);
  const math = await first("math-500");
  expect([math.grade("\\boxed{0.5}"), math.grade("\\boxed{2}")]).toEqual([1, 0]);
  const gpqa = await first("gpqa");
  expect(["A", "B", "C", "D"].map((l) => gpqa.grade(`\\boxed{${l}}`)).sort()).toEqual([0, 0, 0, 1]);
  const long = await first("longbench");
  expect(String.fromCodePoint(...long.item.prompt)).toBe("Text with {input}.|Who?");
  expect([long.grade("\nAnn Lee\nmore"), long.grade("Bob")]).toEqual([1, 0]);
  expect(long.task.profile).toBe("score");
  const ruler = await first("ruler");
  expect([ruler.item.id, ruler.item.maxTokens, ruler.grade("it is 77")]).toEqual([
    "niah_single_1.jsonl-3",
    128,
    1,
  ]);
});

test("samples: each with a seed of its own, the same every time", async () => {
  using directory = new TemporaryDirectory();
  const files = { aime25: directory.write("a.jsonl", '{"problem":"p","answer":"7"}\n') };
  const draw = async () =>
    (await readSet("aime25", { ...options, files, samples: 3, temperature: 0.6 })).items(tokenizer);
  const items = await draw();
  expect(items.map(({ id }) => id)).toEqual(["0 #0", "0 #1", "0 #2"]);
  expect(new Set(items.map(({ sampling }) => sampling?.seed)).size).toBe(3);
  expect(await draw()).toEqual(items);
});

test.each([
  ["aime24", '{"problem":"p","answer":"many"}', /line 1: answer: /],
  ["aime24", "", /holds no record/],
  ["math-500", '{"answer":"1"}', /line 1: problem: /],
  ["math-500", "{", /line 1: is not JSON/],
  ["ruler", '{"input":"x","outputs":["y"]}', /task a\.jsonl: a field task/],
  [
    "longbench",
    '{"input":"","context":"x","answers":["y"],"dataset":"dureader"}',
    /longbench-prompts = missing/,
  ],
])("a damaged file of %s is refused with what is wrong: %s", async (name, content, message) => {
  using directory = new TemporaryDirectory();
  const path = directory.write("a.jsonl", content);
  await expect(readSet(name, { ...options, files: { [name]: path } })).rejects.toThrow(message);
});
