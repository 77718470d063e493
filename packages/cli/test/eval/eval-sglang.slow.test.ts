import { appendFileSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, expect, test, vi } from "vitest";
import { TemporaryDirectory } from "../helpers.ts";
import { evaluate, lastJson } from "./evaluate.ts";

afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
  process.exitCode = 0;
});

const SGLANG = ["--backend", "sglang"] as const;

test("SGLang: the same rows and figures as vLLM from the same answers", async () => {
  using directory = new TemporaryDirectory();
  const run = (name: string, ...more: string[]) =>
    evaluate(
      directory,
      "",
      "--json",
      "--whole",
      "--tasks",
      "recall",
      "--out",
      join(directory.path, name),
      ...more,
    );
  const here = await run("sglang.jsonl", ...SGLANG, "--verbose", "--", "--page-size", "4");
  const there = await run("vllm.jsonl");
  expect([here.code, there.code, here.stderr]).toEqual([0, 0, expect.stringContaining("24 of 24 rows")]);
  const [args] = here.stderr.match(/^\{"args":.*$/m) ?? [];
  // The user's flags come last.
  expect(JSON.parse(args ?? "").args.slice(2)).toEqual([
    ...["--port", expect.stringMatching(/^\d+$/), "--host", "127.0.0.1", "--served-model-name", "evaluated"],
    ...[
      "--stream-interval",
      "16",
      "--disable-radix-cache",
      "--max-running-requests",
      "6",
      "--context-length",
      "1436",
    ],
    ...["--page-size", "4"],
  ]);
  const { engine, tasks } = lastJson(here);
  expect(engine).toEqual({ name: "sglang", version: "9.9.9", runner: "overlap" });
  const figures = (all: Record<string, { tokensPerSecond?: number }>) =>
    Object.fromEntries(Object.entries(all).map(([arm, { tokensPerSecond: _, ...rest }]) => [arm, rest]));
  expect(figures(tasks.recall)).toEqual(figures(lastJson(there).tasks.recall));
  expect(tasks.recall.keydiff.rounds).toBeGreaterThanOrEqual(6);
}, 60_000);

test("SGLang: a request is aborted at its first wrong token", async () => {
  using directory = new TemporaryDirectory();
  const rows = join(directory.path, "rows.jsonl");
  const ran = await evaluate(directory, "", "--json", "--tasks", "recall", ...SGLANG, "--out", rows);
  const { full, random, keydiff } = lastJson(ran).tasks.recall;
  expect([ran.code, full.exact, keydiff.exact, random.exact]).toEqual([0, 6, 6, 0]);
  expect(random.figures.right).toBeCloseTo(0.75, 1);
  // Part by part, and no further.
  expect(random.tokensGenerated).toBeLessThan(0.85 * full.tokensGenerated);
  expect(random.rounds).toBeLessThan(keydiff.rounds);
}, 60_000);

test("SGLang: a died engine's rows are gone on with on the same engine only", async () => {
  using directory = new TemporaryDirectory();
  const rows = join(directory.path, "rows.jsonl");
  const one = ["--tasks", "recall", "--concurrency", "2"];
  const died = await evaluate(directory, "dies:12", ...one, ...SGLANG, "--out", rows);
  expect([died.code, died.stderr]).toEqual([4, expect.stringMatching(/finished rows are kept/)]);
  const other = await evaluate(directory, "", ...one, "--resume", rows);
  expect([other.code, other.stderr]).toEqual([
    2,
    expect.stringMatching(/--resume = .*: backend was "sglang", is now "vllm": ask for the same again/),
  ]);
  const ended = await evaluate(directory, "", ...one, ...SGLANG, "--json", "--resume", rows);
  expect([ended.code, lastJson(ended).tasks.recall.keydiff.total]).toEqual([0, 6]);

  // A file of before engines had a name is vLLM's.
  const [head = ""] = readFileSync(rows, "utf8").split("\n");
  const { settings, ...rest } = JSON.parse(head);
  const { backend: _, ...unnamed } = settings;
  const old = directory.write("old.jsonl", `${JSON.stringify({ ...rest, settings: unnamed })}\n`);
  const refused = await evaluate(directory, "", ...one, ...SGLANG, "--resume", old);
  expect([refused.code, refused.stderr]).toEqual([
    2,
    expect.stringMatching(/backend was "vllm", is now "sglang"/),
  ]);
  appendFileSync(old, '{"arm":1}\n');
  const read = await evaluate(directory, "", ...one, "--resume", old);
  expect([read.code, read.stderr]).toEqual([2, expect.stringMatching(/line 2: is no row/)]);
}, 120_000);

test("SGLang: what it did not do, and what it cut, are errors", async () => {
  using directory = new TemporaryDirectory();
  const rows = join(directory.path, "rows.jsonl");
  const cases: [string, string[], number, RegExp][] = [
    ["lazy", ["--out", rows], 5, /random did not compress recall/],
    [
      "cuts",
      ["--resume", rows],
      1,
      /cut eval-\d+ after 5 of \d+ tokens: .* a larger --max-total-tokens or --context-length/,
    ],
  ];
  for (const [words, flags, code, message] of cases) {
    const ran = await evaluate(directory, words, ...SGLANG, "--tasks", "recall", "--limit", "1", ...flags);
    expect([ran.code, ran.stderr]).toEqual([code, expect.stringMatching(message)]);
  }
}, 120_000);

test("SGLang: texts are scored in chunks of one interval; seeds that it does not heed are said", async () => {
  using directory = new TemporaryDirectory();
  const text = directory.write("text.txt", "abcdefghij".repeat(40));
  const what = ["--tasks", "fidelity", "--text", text, "--text-length", "200", "--limit", "2", "--json"];
  const sizes = ["--interval", "16", "--window", "8", "--out", join(directory.path, "rows.jsonl")];
  const sampled = ["--temperature", "0.6", "--verbose"];
  const { code, stdout, stderr } = await evaluate(directory, "", ...SGLANG, ...what, ...sizes, ...sampled);
  expect(code).toBe(0);
  expect(stderr).toMatch(/"--max-running-requests", "1", .*"--chunked-prefill-size", "16"/);
  expect(stderr).toMatch(/^SGLang draws answers without their seeds, .*--enable-deterministic-inference$/m);
  const { fidelity } = JSON.parse(stdout.trimEnd().split("\n").at(-1) ?? "").tasks;
  for (const arm of ["full", "random", "streaming", "keydiff"]) {
    expect(fidelity[arm]).toMatchObject({ exact: 2, total: 2, figures: { agreement: 1, kl: 0, nll: 1 } });
  }
  expect(fidelity.keydiff.rounds).toBeGreaterThan(0);

  const unlimited = await evaluate(
    directory,
    "unlimited",
    ...SGLANG,
    ...what.slice(0, -1),
    ...sizes.slice(0, 4),
    "--out",
    join(directory.path, "other.jsonl"),
  );
  expect([unlimited.code, unlimited.stderr]).toEqual([
    2,
    expect.stringMatching(/model = \/tokenize answered 500: .*no model_max_length/),
  ]);
}, 60_000);
