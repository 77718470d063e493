import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { join } from "node:path";
import { expect, test } from "vitest";
import { alive, fakeEnvironment, python, root, until, withVariable } from "./helpers.ts";

interface Cli {
  readonly child: ChildProcess;
  readonly output: { stdout: string; stderr: string };
  readonly ended: Promise<number | NodeJS.Signals | null>;
  events(): Record<string, unknown>[];
}

/** `triattn ARGS` in a process of its own. */
function cli(args: readonly string[], env: NodeJS.ProcessEnv = fakeEnvironment()): Cli {
  const bin = join(root, "packages", "cli", "src", "bin.ts");
  const child = spawn(process.execPath, ["--import", "tsx", bin, ...args], { cwd: root, env });
  const output = { stdout: "", stderr: "" };
  child.stdout.on("data", (chunk) => (output.stdout += chunk));
  child.stderr.on("data", (chunk) => (output.stderr += chunk));
  const ended = once(child, "close").then(([code, signal]) => code ?? signal);
  const events = () =>
    output.stdout
      .split("\n")
      .filter((line) => line.startsWith("{"))
      .map((line) => JSON.parse(line));
  return { child, output, ended, events };
}

const serving = (...more: string[]) => [
  "serve",
  "nobody/nothing",
  "--policy",
  "keydiff",
  "--python",
  python,
  ...more,
];
const ready = (started: Cli) =>
  until(() => started.events().some(({ event }) => event === "ready"), "ready", 30_000);

for (const [signal, code] of [
  ["SIGINT", 130],
  ["SIGTERM", 143],
] as const) {
  test(`${signal} stops everything in order: exit code ${code}`, async () => {
    const mark = `stop-${signal}-${process.pid}`;
    const started = cli(
      serving("--json", "--", "--port", "0"),
      fakeEnvironment("orphans", { TRIATTN_MARK: mark }),
    );
    await ready(started);
    expect(withVariable("TRIATTN_MARK", mark).length).toBeGreaterThan(3);
    started.child.kill(signal);
    expect(await started.ended).toBe(code);
    expect(started.events().map(({ event }) => event)).toEqual(["starting", "ready", "stopping", "stopped"]);
    expect(withVariable("TRIATTN_MARK", mark)).toEqual([]);
  }, 60_000);
}

test("Ctrl-C twice kills an engine that would not go", async () => {
  const started = cli(serving("--json", "--", "--port", "0"), fakeEnvironment("hang"));
  await ready(started);
  started.child.kill("SIGINT");
  await until(() => started.events().some(({ event }) => event === "stopping"), "stopping");
  await new Promise((resolve) => setTimeout(resolve, 400));
  started.child.kill("SIGINT");
  expect(await started.ended).toBe(130);
  expect(started.events().at(-1)).toMatchObject({ event: "stopped", signal: "SIGKILL", asked: true });
}, 60_000);

test("killed with -9, it leaves nothing behind", async () => {
  const mark = `kill-${process.pid}`;
  const started = cli(
    serving("--json", "--", "--port", "0"),
    fakeEnvironment("orphans", { TRIATTN_MARK: mark }),
  );
  await ready(started);
  started.child.kill("SIGKILL");
  expect(await started.ended).toBe("SIGKILL");
  await until(() => withVariable("TRIATTN_MARK", mark).length === 0, "everything ends", 20_000);
}, 60_000);

test("an engine that dies: exit code 4, with the end of its log, and nothing is left", async () => {
  const mark = `die-${process.pid}`;
  const started = cli(serving("--", "--port", "0"), fakeEnvironment("orphans die", { TRIATTN_MARK: mark }));
  expect(await started.ended).toBe(4);
  expect(started.output.stderr).toMatch(/triattn: error: the engine died \(exit code 7\)/);
  expect(started.output.stderr).toMatch(/triattn: {3}\| CUDA error/);
  expect(withVariable("TRIATTN_MARK", mark)).toEqual([]);
}, 60_000);

test("a port that is taken: exit code 3 before anything starts", async () => {
  const server = createServer().listen(0, "0.0.0.0");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  const started = cli(serving("--", "--port", String(port)));
  expect(await started.ended).toBe(3);
  server.close();
  expect(started.output.stderr).toBe(
    `triattn: error: port = ${port}: is taken by another process; stop that, or choose another: -- --port N\n`,
  );
  expect(started.output.stdout).toBe("");
}, 30_000);

test("--dry-run starts nothing and prints command, environment and policy", async () => {
  const started = cli(serving("--dry-run", "--json", "--budget", "512", "--", "--port=0", "-tp", "2"));
  expect(await started.ended).toBe(0);
  const [plan] = started.output.stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(plan.command.slice(0, 5)).toEqual([
    python,
    "-m",
    "vllm.entrypoints.openai.api_server",
    "--model",
    "nobody/nothing",
  ]);
  expect(plan.command.slice(5, 8)).toEqual([`--port=${new URL(plan.url).port}`, "-tp", "2"]);
  expect(plan.policy).toMatchObject({ name: "keydiff", budget: 512 });
  expect(JSON.parse(plan.environment.TRIATTN_POLICY)).toEqual(plan.policy);
  expect(plan.engine).toMatchObject({ version: "9.9.9" });
}, 30_000);

test("help and version", async () => {
  const version = cli(["--version"]);
  expect(await version.ended).toBe(0);
  expect(version.output.stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  const help = cli(["serve", "--help"]);
  expect(await help.ended).toBe(0);
  expect(help.output.stdout).toMatch(/Exit codes:/);
  expect(alive(process.pid)).toBe(true);
}, 30_000);

test("a reader of items that has had enough is no error", async () => {
  const { child, output, ended } = cli([
    "eval",
    "generate",
    "--count",
    "100000",
    "--length",
    "300",
    "--json",
  ]);
  child.stdout?.once("data", () => child.stdout?.destroy());
  expect(await ended).toBe(0);
  expect(output.stderr).toBe("");
}, 30_000);
