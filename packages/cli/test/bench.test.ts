import { chmodSync, existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, expect, onTestFinished, test, vi } from "vitest";
import { Kernel, kernelsPlot, kernelsReport, kernelsTable } from "../src/bench/kernels.ts";
import { drive, generator } from "../src/bench/load/drive.ts";
import { spread } from "../src/bench/load/report.ts";
import { run } from "../src/program.ts";
import { FakeControlServer } from "./fixtures/control-server.ts";
import { FakeOpenAI } from "./fixtures/openai-server.ts";
import { root, TemporaryDirectory } from "./helpers.ts";

afterEach(() => {
  vi.restoreAllMocks();
  process.exitCode = 0;
});

async function openAI(): Promise<FakeOpenAI> {
  const fake = await FakeOpenAI.start();
  onTestFinished(() => fake.close());
  return fake;
}

/** A control plane whose engine evicts for every request that has a budget. */
async function compressing(openai: FakeOpenAI): Promise<FakeControlServer> {
  const fake = await FakeControlServer.start();
  onTestFinished(() => fake.close());
  openai.onRequest = ({ vllm_xargs }) => {
    if (vllm_xargs?.triattn_budget !== 0) fake.tick();
  };
  return fake;
}

async function bench(...args: string[]) {
  const stdout = vi.spyOn(process.stdout, "write").mockReturnValue(true);
  const stderr = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  const code = await run(["bench", ...args]);
  const result = { code, out: stdout.mock.calls.join(""), err: stderr.mock.calls.join("") };
  vi.restoreAllMocks();
  return result;
}

test("load: arms with and without a budget, counters before and after, a report and its plot", async () => {
  using directory = new TemporaryDirectory();
  const openai = await openAI();
  const control = await compressing(openai);
  const out = join(directory.path, "load.json");
  const args = [
    "load",
    openai.url,
    "--control",
    control.url,
    "--requests",
    "6",
    "--concurrency",
    "3",
    "--tokens",
    "9",
  ];
  const {
    code,
    out: text,
    err,
  } = await bench(...args, "--warm-up", "1", "--budget", "0", "--budget", "512", "--out", out);
  expect([code, err]).toEqual([0, ""]);
  const report = JSON.parse(readFileSync(out, "utf8"));
  expect(report).toMatchObject({
    model: "smol",
    engines: ["vllm 0.32.0 (v2)"],
    settings: { requests: 6, tokens: 9 },
  });
  const [full, budget] = report.arms;
  expect(full).toMatchObject({
    name: "full KV",
    budget: 0,
    requests: 6,
    failed: 0,
    tokens: 54,
    fired: { rounds: 0 },
  });
  expect(budget).toMatchObject({
    name: "budget 512",
    budget: 512,
    tokens: 54,
    fired: { rounds: 90, tokensEvicted: 11_520 },
  });
  expect(full.ttftMs.p50).toBeGreaterThan(15);
  expect(full.itlMs.p50).toBeGreaterThan(3);
  expect(full.e2eMs.p50).toBeGreaterThan(full.ttftMs.p50 + 4 * 3);
  expect(full.tokensPerSecond).toBeCloseTo(54 / full.seconds, 5);
  expect(text).toMatch(/budget 512 +6 +0 .* 90 +11520 +0\n/);
  expect(readFileSync(join(directory.path, "load.svg"), "utf8")).toMatch(/<svg.*budget 512/s);
  expect(openai.busiest).toBe(3);
  // Both arms send the same prompts; the warm-up others.
  const prompts = openai.asked.map(({ prompt }) => prompt.join());
  expect(new Set(prompts).size).toBe(7);
  expect(openai.asked[1]).toMatchObject({
    ignore_eos: true,
    max_tokens: 9,
    vllm_xargs: { triattn_budget: 0 },
  });
}, 60_000);

test("load: an arm in which compression did not fire is not reported", async () => {
  using directory = new TemporaryDirectory();
  const openai = await openAI();
  const control = await FakeControlServer.start();
  onTestFinished(() => control.close());
  const out = join(directory.path, "load.json");
  const args = ["load", openai.url, "--requests", "2", "--tokens", "3", "--warm-up", "0", "--out", out];
  const idle = await bench(...args, "--control", control.url, "--budget", "512", "--json");
  expect(idle.code).toBe(5);
  expect(idle.out).toMatch(/arm budget 512: compression did not fire; no request grew past/);
  // The server's own policy has a budget, so its arm has to compress, too.
  expect((await bench(...args, "--control", control.url)).err).toMatch(
    /arm server: compression did not fire/,
  );
  control.policy = { ...control.policy, policy: { ...control.policy.policy, budget: 0 } };
  expect((await bench(...args, "--control", control.url)).code).toBe(0);
  expect(existsSync(out)).toBe(true);
}, 60_000);

test("load: failures are counted, and all of them are an error", async () => {
  const openai = await openAI();
  const control = await compressing(openai);
  const args = [
    "load",
    openai.url,
    "--control",
    control.url,
    "--warm-up",
    "0",
    "--requests",
    "3",
    "--tokens",
    "2",
  ];
  openai.fails = 1;
  const { out } = await bench(...args, "--json");
  expect(JSON.parse(out).arms[0]).toMatchObject({ requests: 2, failed: 1 });
  openai.fails = 9;
  expect(await bench(...args)).toMatchObject({
    code: 3,
    err: expect.stringMatching(/every request failed, the first with: 400: .*no/),
  });
  expect(await bench("load", "http://127.0.0.1:1")).toMatchObject({
    code: 3,
    err: expect.stringMatching(/no OpenAI server answers/),
  });
  expect(await bench(...args, "--model", "other")).toMatchObject({
    code: 2,
    err: expect.stringMatching(/--model = other: one that the server has: smol/),
  });
  expect(await bench(...args, "--request-rate", "-1")).toMatchObject({ code: 2 });
}, 60_000);

test("load: requests come at random moments of the rate asked for, the same for the same seed", async () => {
  const openai = await openAI();
  const options = {
    model: "smol",
    requests: 12,
    concurrency: 12,
    promptTokens: 4,
    maxTokens: 1,
    ignoreEos: true,
  };
  const rest = {
    url: openai.url,
    budget: undefined,
    engine: "vllm" as const,
    vocabulary: 1000,
    signal: new AbortController().signal,
  };
  const { samples, seconds } = await drive({ ...options, ...rest, rate: 40, seed: 3 });
  expect(samples).toHaveLength(12);
  // 12 requests at 40 a second take about 0.3 s; all at once they would take a tenth of that.
  expect(seconds).toBeGreaterThan(0.12);
  const ids = openai.asked.flatMap(({ prompt }) => prompt);
  expect(Math.min(...ids)).toBeGreaterThanOrEqual(100);
  expect(Math.max(...ids)).toBeLessThan(1000);
  const twice = [generator(7), generator(7)].map((random) => Array.from({ length: 5 }, random));
  expect(twice[0]).toEqual(twice[1]);
});

test("percentiles are values that were measured", () => {
  const hundred = Array.from({ length: 100 }, (_, i) => i + 1);
  expect(spread(hundred)).toEqual({ mean: 50.5, p50: 50, p90: 90, p99: 99 });
  expect(spread([3])).toEqual({ mean: 3, p50: 3, p90: 3, p99: 3 });
});

test("kernels: the committed measurements as a table and a plot", () => {
  const { kernels } = JSON.parse(readFileSync(join(root, "docs", "benchmarks", "vllm-h200.json"), "utf8"));
  const report = kernelsReport("c", Kernel.array().parse(kernels));
  const text = kernelsTable(report);
  expect(text).toMatch(/^NVIDIA H200; a plain copy moves 4\.28 TB\/s/);
  expect(text).toMatch(/triattention +1 +2048 +135\.6 +3\.2 % +198\.2 +46\.3 +2\.93 +34 % +4\.42/);
  expect(kernelsPlot(report)).toMatch(/<svg.*random, 1 requests, budget 2048.*3\.49 x, 31 us/s);
});

test("kernels: refused without a GPU, with what torch says; otherwise random is always measured", async () => {
  using directory = new TemporaryDirectory();
  const { kernels } = JSON.parse(readFileSync(join(root, "docs", "benchmarks", "vllm-h200.json"), "utf8"));
  const probe = {
    python: [3, 12, 1],
    executable: "python",
    engine: { version: "1", distribution: "vllm", servers: [true, true] },
    missing: [],
  };
  const python = (name: string, cuda: object) => {
    const doctor = { versions: {}, plugins: [], outcomes: [{ check: "cuda", ...cuda }] };
    const script = `#!/bin/sh
case "$2" in
  triattn.doctor) echo '${JSON.stringify(doctor)}' ;;
  triattn.bench.rounds) echo "$3" > ${directory.path}/asked; echo '${JSON.stringify(kernels)}' ;;
  *) echo '${JSON.stringify(probe)}' ;;
esac
`;
    const path = directory.write(name, script);
    chmodSync(path, 0o755);
    return path;
  };
  const none = python("none", { ok: true, result: { build: null, devices: [] } });
  expect(await bench("kernels", "--python", none)).toMatchObject({
    code: 3,
    err: expect.stringMatching(/gpu = none that torch sees: the kernels are measured on a GPU/),
  });
  const broken = python("broken", { ok: false, message: "ModuleNotFoundError: torch" });
  expect((await bench("kernels", "--python", broken)).err).toMatch(/gpu = ModuleNotFoundError: torch/);
  const gpu = python("gpu", { ok: true, result: { build: "13.0", devices: [{ name: "NVIDIA H200" }] } });
  const out = join(directory.path, "kernels.json");
  expect((await bench("kernels", "--python", gpu, "--policies", "keydiff", "--out", out)).code).toBe(0);
  expect(JSON.parse(readFileSync(join(directory.path, "asked"), "utf8"))).toEqual({
    budgets: [2048],
    requests: [1, 16, 64],
    interval: 128,
    policies: ["random", "keydiff"],
  });
  expect(JSON.parse(readFileSync(out, "utf8"))).toMatchObject({ device: "NVIDIA H200" });
  expect(readFileSync(join(directory.path, "kernels.svg"), "utf8")).toMatch(/^<svg/);
});
