import { appendFileSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, expect, test, vi } from "vitest";
import { TemporaryDirectory } from "../helpers.ts";
import { evaluate, lastJson, type Ran } from "./evaluate.ts";

afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
  process.exitCode = 0;
});

test("arms and tasks through an engine; controls always run; one JSON object at the end; plots", async () => {
  using directory = new TemporaryDirectory();
  const report = join(directory.path, "report");
  const out = ["--out", join(directory.path, "rows.jsonl"), "--report", report];
  const ran = await evaluate(directory, "", "--json", ...out);
  expect([ran.code, ran.stderr]).toEqual([0, expect.stringContaining("48 of 48 rows")]);
  const { tasks } = lastJson(ran);
  expect(Object.keys(tasks)).toEqual(["grammar", "recall"]);
  for (const results of Object.values<Record<string, Record<string, unknown>>>(tasks)) {
    expect(Object.keys(results)).toEqual(["full", "random", "streaming", "keydiff"]);
    expect(results.full).toMatchObject({ exact: 6, total: 6, rounds: 0, tokensEvicted: 0, keptRatio: 1 });
    expect(results.keydiff).toMatchObject({
      exact: 6,
      keep: "1/4",
      pin: "prompt",
      ci95: [0.6097, 1].map((v) => expect.closeTo(v, 3)),
    });
    expect(results.keydiff?.rounds).toBeGreaterThanOrEqual(6);
    expect(results.keydiff?.keptRatio).toBeLessThan(0.4);
    expect(results.random).toMatchObject({ exact: 0, versusFull: { difference: -1, above: 0, below: 6 } });
    expect(results.keydiff?.versusRandom).toMatchObject({ difference: 1, above: 6 });
  }
  expect(readdirSync(report).sort()).toEqual([
    "grammar-budget.svg",
    "recall-budget.svg",
    "report.json",
    "report.txt",
  ]);
  const table = readFileSync(join(report, "report.txt"), "utf8");
  expect(table).toMatch(/^random .* WORSE$/m);
  expect(table).toMatch(/^WORSE than full KV: random on recall, exact -1 \(-1–-1\)$/m);
  expect(table).toMatch(/^BETTER than random eviction: keydiff on grammar, exact \+1 \(1–1\)$/m);
  expect(table).toMatch(/^keydiff .* same .* BETTER$/m);
}, 60_000);

test("a request ends at its first wrong token; --whole generates on, and tells answers and tokens a second", async () => {
  using directory = new TemporaryDirectory();
  const rows = join(directory.path, "rows.jsonl");
  const asked = ["--json", "--tasks", "recall"];
  const ended = await evaluate(directory, "", ...asked, "--out", rows);
  const plots = join(directory.path, "report");
  const files = ["--out", join(directory.path, "whole.jsonl"), "--report", plots];
  const whole = await evaluate(directory, "", ...asked, "--whole", ...files);
  const [first, second] = [ended, whole].map((ran) => lastJson(ran).tasks.recall);
  for (const arm of ["full", "random", "streaming", "keydiff"]) {
    expect(first[arm]).toMatchObject({
      exact: second[arm].exact,
      ci95: second[arm].ci95,
      tokensPerSecond: null,
    });
    expect(first[arm].figures.right).toBe(second[arm].figures.right);
    expect(second[arm].tokensPerSecond).toBeGreaterThan(0);
  }
  // Three quarters in, and what came with that token.
  expect([first.random.exact, first.random.figures.right]).toEqual([0, expect.closeTo(0.75, 1)]);
  expect(first.random.tokensGenerated).toBeLessThan(0.8 * second.random.tokensGenerated);
  expect(first.random.rounds).toBeLessThan(second.random.rounds);
  expect(first.full.tokensGenerated).toBe(second.full.tokensGenerated);
  expect(Object.keys(first.full.figures)).toEqual(["exact", "right"]);
  expect(Object.keys(second.full.figures)).toEqual(["exact", "answer", "right"]);
  expect(readdirSync(plots)).toContain("recall-speed.svg");
  const mixed = await evaluate(directory, "", "--tasks", "recall", "--whole", "--resume", rows);
  expect([mixed.code, mixed.stderr]).toEqual([2, expect.stringMatching(/whole was false, is now true/)]);
}, 60_000);

test("a policy that needs queries is refused before an engine starts that keeps none", async () => {
  using directory = new TemporaryDirectory();
  const ran = await evaluate(directory, "", "--backend", "sglang", "--policy", "keydiff,h2o");
  expect([ran.code, ran.stderr]).toEqual([2, expect.stringContaining("policy = h2o: its term accumulated")]);
}, 60_000);

test("an engine that dies half-way: exit code 4, finished rows kept, --resume goes on", async () => {
  using directory = new TemporaryDirectory();
  const rows = join(directory.path, "rows.jsonl");
  const died = await evaluate(directory, "dies:20", "--whole", "--json", "--concurrency", "2", "--out", rows);
  expect(died.code).toBe(4);
  expect(JSON.parse(died.stdout.trimEnd().split("\n").at(-1) ?? "")).toMatchObject({
    event: "error",
    exitCode: 4,
  });
  const kept = readFileSync(rows, "utf8").trimEnd().split("\n").length;
  expect(died.stderr).toMatch(
    /\d+ finished rows are kept: the same command with --resume .*rows\.jsonl goes on/,
  );
  expect(kept).toBeGreaterThan(12);

  // What a crash in the middle of a line leaves behind is cut off.
  appendFileSync(rows, '{"arm":"keydi');
  const ended = await evaluate(directory, "", "--whole", "--json", "--resume", rows);
  expect(ended.code).toBe(0);
  // Nothing is left: the same report, without an engine.
  const again = await evaluate(directory, "", "--whole", "--json", "--resume", rows);
  expect([again.code, again.stderr]).toEqual([0, expect.not.stringContaining("starting the engine")]);
  expect(lastJson(again).tasks).toEqual(lastJson(ended).tasks);
  expect(lastJson(again).engine).toEqual({ name: "vllm", version: "9.9.9", runner: "v1" });
  const whole = await evaluate(
    directory,
    "",
    "--whole",
    "--json",
    "--out",
    join(directory.path, "whole.jsonl"),
  );
  const counts = (ran: Ran) =>
    Object.entries(lastJson(ran).tasks).map(([task, results]) => [
      task,
      Object.entries(
        results as Record<string, { exact: number; total: number; rounds: number; ci95: unknown }>,
      ).map(([arm, { exact, total, rounds, ci95 }]) => [arm, exact, total, rounds, ci95]),
    ]);
  expect(counts(ended)).toEqual(counts(whole));

  // One more arm: only its own rows are run.
  const before = readFileSync(rows, "utf8").split("\n").length;
  const recent = directory.write("recent.json", '{"name":"recent","terms":[{"kind":"recency"}]}');
  const added = await evaluate(
    directory,
    "",
    "--whole",
    "--json",
    "--policy",
    `keydiff,${recent}`,
    "--resume",
    rows,
  );
  expect([added.code, Object.keys(lastJson(added).tasks.recall)]).toEqual([
    0,
    ["full", "random", "streaming", "keydiff", "recent"],
  ]);
  expect(readFileSync(rows, "utf8").split("\n").length - before).toBe(1 + 12 + 2);

  const other = await evaluate(directory, "", "--whole", "--seed", "1", "--resume", rows);
  expect([other.code, other.stderr]).toEqual([
    2,
    expect.stringMatching(/--resume = .*: seed was 0, is now 1/),
  ]);
  appendFileSync(rows, '{"arm":1}\n');
  const damaged = await evaluate(directory, "", "--whole", "--resume", rows);
  expect([damaged.code, damaged.stderr]).toEqual([2, expect.stringMatching(/line \d+: is no row \(arm: /)]);
}, 120_000);

test("two engines share an arm's requests, under the same policy; the same figures; both end with the run", async () => {
  using directory = new TemporaryDirectory();
  const two = ["--engines", "2", "--whole", "--verbose", "--out", join(directory.path, "two.jsonl")];
  const ran = await evaluate(directory, "", "--json", ...two);
  expect([ran.code, ran.stderr]).toEqual([0, expect.stringContaining("2 engines serve after")]);
  expect(lastJson(ran).engine).toEqual({ name: "vllm", version: "9.9.9", runner: "v1", count: 2 });
  const alone = await evaluate(
    directory,
    "",
    "--json",
    "--whole",
    "--out",
    join(directory.path, "one.jsonl"),
  );
  const figures = (of: Ran) =>
    Object.values<Record<string, Record<string, unknown>>>(lastJson(of).tasks).map((arms) =>
      Object.entries(arms).map(([arm, { exact, total, rounds, tokensEvicted, ci95, keptRatio }]) => [
        ...[arm, exact, total, rounds, tokensEvicted, ci95],
        (keptRatio as number).toFixed(9),
      ]),
    );
  expect(figures(ran)).toEqual(figures(alone));

  // One that dies ends the run, and the other one.
  const dead = await evaluate(
    directory,
    "dies:20",
    "--engines",
    "2",
    "--out",
    join(directory.path, "died.jsonl"),
  );
  expect([dead.code, dead.stderr]).toEqual([4, expect.stringMatching(/finished rows are kept/)]);
}, 120_000);

test("a request of which the last event was lost is sent anew", async () => {
  using directory = new TemporaryDirectory();
  const rows = ["--out", join(directory.path, "rows.jsonl"), "--limit", "2", "--tasks", "grammar"];
  // Warm-up, two of full, one of random.
  const ran = await evaluate(directory, "loses:4", "--json", "--concurrency", "1", ...rows);
  expect([ran.code, ran.stderr]).toEqual([0, expect.stringContaining("8 of 8 rows")]);
  expect(lastJson(ran).tasks.grammar.random.rounds).toBeGreaterThan(2);
}, 60_000);

test("an arm that compresses nothing is an error: exit code 5", async () => {
  using directory = new TemporaryDirectory();
  const rows = ["--out", join(directory.path, "rows.jsonl")];
  const lazy = await evaluate(directory, "lazy", "--limit", "1", "--tasks", "grammar", ...rows);
  expect([lazy.code, lazy.stderr]).toEqual([5, expect.stringMatching(/random did not compress grammar/)]);
}, 60_000);

test("texts: the full arm is asked again for what a resumed run compares with", async () => {
  using directory = new TemporaryDirectory();
  const text = directory.write("text.txt", "abcdefghij".repeat(40));
  const rows = join(directory.path, "rows.jsonl");
  const flags = [
    "--tasks",
    "fidelity",
    "--text",
    text,
    "--text-length",
    "200",
    "--limit",
    "2",
    "--interval",
    "16",
  ];
  const sizes = ["--window", "8", "--json"];
  const died = await evaluate(directory, "dies:6", ...flags, ...sizes, "--out", rows);
  expect(died.code).toBe(4);
  const { code, stdout } = await evaluate(directory, "", ...flags, ...sizes, "--resume", rows);
  expect(code).toBe(0);
  const { fidelity } = JSON.parse(stdout.trimEnd().split("\n").at(-1) ?? "").tasks;
  for (const arm of ["full", "random", "streaming", "keydiff"]) {
    expect(fidelity[arm]).toMatchObject({ exact: 2, total: 2, figures: { agreement: 1, kl: 0, nll: 1 } });
  }
  expect(fidelity.keydiff.rounds).toBeGreaterThan(0);
}, 60_000);

test("one clear line for each mistake, before any engine starts", async () => {
  using directory = new TemporaryDirectory();
  const there = directory.write("there.jsonl", "{}\n");
  const rules = directory.write(
    "rules.json",
    '{"policy":"keydiff","rules":[{"name":"one","match":{"tags":["a"]},"budget":900}]}',
  );
  const cases: [string[], number, RegExp][] = [
    [["--policy", rules], 2, /--policy = .*rules\.json: a policy without rules/],
    [["--tasks", "chess"], 2, /--tasks = chess: all, or some of grammar, .*needles/],
    [["--keep", "2"], 2, /--keep = 2: a part between 0 and 1/],
    [["--lengths", "many"], 2, /--lengths = many: whole numbers/],
    [["--lengths", "10"], 2, /--length = 10: from 40/],
    [["--policy", "magic"], 2, /policy = magic: one of/],
    [["--policy", "triattention"], 2, /stats/],
    [["--budget", "500"], 2, /--budget = 500: either --keep or --budget/],
    [["--out", there], 2, /--out = .*there already: --resume/],
    [["--resume", there], 2, /line 1: is no file of rows/],
    [["--resume", "/nowhere/rows"], 2, /--resume = \/nowhere\/rows: is not there/],
    [["--tasks", "longbench"], 2, /--tasks = longbench: needs data: --data longbench=FILE/],
    [["--data", "chess=x"], 2, /--data = chess=x: NAME=FILE, the name one of aime24/],
    [["--tasks", "gpqa", "--data", "gpqa=x"], 2, /--keep = 1\/4: --budget instead/],
    [["--tasks", "ruler", "--data", `ruler=${there}`], 2, /--data ruler = .*line 1: input: /],
    [["--temperature", "hot"], 2, /--temperature = hot: a number from 0 to 2/],
    [["--tasks", "fidelity", "--text", "/nowhere/text"], 2, /--text = \/nowhere\/text: cannot be read/],
  ];
  for (const [flags, code, message] of cases) {
    const ran = await evaluate(directory, "", ...flags);
    expect([ran.code, ran.stderr]).toEqual([code, expect.stringMatching(message)]);
  }
}, 60_000);
