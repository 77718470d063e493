import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { ApiState } from "@triattn/protocol";
import { afterEach, expect, test, vi } from "vitest";
import { questions } from "../src/demo/requests.ts";
import { run } from "../src/program.ts";
import { fakeEngine, fakeEnvironment, python, root } from "./helpers.ts";

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

test("--dashboard serves the page over a load that goes on, until Ctrl-C", async () => {
  const bin = join(root, "packages", "cli", "src", "bin.ts");
  const flags = ["--python", python, "--policy", "keydiff", "--requests", "2", "--tokens", "200", "--json"];
  const child = spawn(
    process.execPath,
    ["--import", "tsx", bin, "demo", "nobody/nothing", ...flags, "--dashboard", "127.0.0.1:0"],
    { cwd: root, env: fakeEnvironment(), stdio: ["ignore", "pipe", "ignore"] },
  );
  const exited = once(child, "exit");
  try {
    const [line] = await Promise.race([
      once(createInterface(child.stdout), "line"),
      exited.then(() => [`{"event":"exit"}`]),
    ]);
    const { event, dashboard } = JSON.parse(line);
    expect(event).toBe("ready");
    expect(await (await fetch(dashboard)).text()).toMatch(/<div id="app">/);
    const finished = async () => {
      const state = (await (await fetch(`${dashboard}/api/state`)).json()) as ApiState;
      return Number(state.engines[0]?.counters?.requestsFinished ?? 0);
    };
    // More than one for each of the two: it asks again.
    while ((await finished()) < 3) await new Promise((resolve) => setTimeout(resolve, 200));
  } finally {
    child.kill("SIGINT");
  }
  expect(await exited).toEqual([130, null]);
}, 60_000);

test("questions differ, and are the same every time", () => {
  expect(new Set(questions(40)).size).toBe(40);
  expect(questions(40)).toEqual(questions(40));
});
