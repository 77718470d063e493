import { afterEach, expect, test, vi } from "vitest";
import { questions } from "../src/demo/requests.ts";
import { run } from "../src/program.ts";
import { fakeEngine, python } from "./helpers.ts";

afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
  process.exitCode = 0;
});

/** Runs the demo on the engine without a model. */
async function demo(words: string, ...more: string[]) {
  vi.stubEnv("PYTHONPATH", fakeEngine);
  vi.stubEnv("FAKE_ENGINE", words);
  const out = vi.spyOn(process.stdout, "write").mockReturnValue(true);
  const err = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  const flags = ["--python", python, "--policy", "keydiff", "--requests", "3", "--tokens", "200"];
  const code = await run(["demo", "nobody/nothing", ...flags, ...more]);
  return { code, stdout: out.mock.calls.join(""), stderr: err.mock.calls.join("") };
}

test("both arms, side by side", async () => {
  const { code, stdout } = await demo("");
  expect(code).toBe(0);
  expect(stdout).toMatch(/full KV +keydiff, budget 96\n/);
  expect(stdout).toMatch(/\ntokens generated +600 +600\n/);
  expect(stdout).toMatch(/\nrounds +0 +3\n/);
  expect(stdout).toMatch(/The first answer, keydiff: Once upon a time/);
}, 60_000);

test("--json ends with one line that holds both arms", async () => {
  const { code, stdout } = await demo("", "--json");
  expect(code).toBe(0);
  const report = JSON.parse(stdout.trimEnd().split("\n").at(-1) ?? "");
  expect(Object.keys(report)).toEqual(["full", "compressed", "engine", "policy"]);
  expect(report.engine).toEqual({ name: "vllm", version: "9.9.9", runner: "v1" });
  expect(report.policy).toMatchObject({ name: "keydiff", budget: 96 });
  const counts = { requests: 3, tokensGenerated: 600, peakResidentTokens: 100, preemptions: 0 };
  expect(report.full).toMatchObject({ ...counts, rounds: 0, tokensEvicted: 0, blocksReclaimed: 0 });
  expect(report.compressed).toMatchObject({ ...counts, rounds: 3, tokensEvicted: 96, blocksReclaimed: 3 });
  for (const arm of [report.full, report.compressed]) expect(arm.tokensPerSecond).toBeGreaterThan(0);
}, 60_000);

test("exit code 5 when nothing was compressed", async () => {
  const { code, stderr } = await demo("lazy");
  expect(code).toBe(5);
  expect(stderr).toMatch(/triattn: error: nothing was compressed: 3 requests of 200 tokens/);
}, 60_000);

test("exit code 4 when the engine dies", async () => {
  const { code, stderr } = await demo("early");
  expect(code).toBe(4);
  expect(stderr).toMatch(/out of memory/);
}, 60_000);

test("a budget of 0 is refused: that arm is run anyway", async () => {
  const { code, stderr } = await demo("", "--budget", "0");
  expect(code).toBe(2);
  expect(stderr).toMatch(/--budget = 0: a budget to compress to/);
});

test("questions differ, and are the same every time", () => {
  expect(new Set(questions(40)).size).toBe(40);
  expect(questions(40)).toEqual(questions(40));
});
