import { chmodSync, existsSync, mkdirSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { createControlPlane, createCurveKeys, EndpointError } from "../src/index.ts";
import { FakeEngine, hello } from "./fake-engine.ts";
import { eventually, recorder, silent, startPlane, temporaryDirectory } from "./helpers.ts";

const mode = (path: string) => statSync(path).mode & 0o777;
const pathOf = (endpoint: string) => endpoint.slice("ipc://".length);

async function refusal(options: Parameters<typeof createControlPlane>[0]): Promise<EndpointError> {
  const error = await createControlPlane({ logger: silent, ...options }).then(
    (plane) => plane.close().then(() => undefined),
    (error: unknown) => error,
  );
  expect(error).toBeInstanceOf(EndpointError);
  return error as EndpointError;
}

test("by default: a socket of mode 600 in a directory of mode 700, gone after close", async () => {
  const plane = await createControlPlane({ logger: silent });
  const path = pathOf(plane.endpoint);
  expect([mode(path), mode(dirname(path))]).toStrictEqual([0o600, 0o700]);
  await plane.close();
  await plane.close();
  expect(existsSync(dirname(path))).toBe(false);
});

test("a path of one's own: made private, taken over when nobody serves it any more", async () => {
  const path = join(temporaryDirectory(), "new", "s");
  const first = await startPlane({ endpoint: `ipc://${path}` });
  expect([mode(path), mode(dirname(path))]).toStrictEqual([0o600, 0o700]);
  expect((await refusal({ endpoint: `ipc://${path}` })).remedy).toContain("a control plane is listening");
  await first.close();
  await startPlane({ endpoint: `ipc://${path}` });
});

test("a socket left behind by a process that was killed", async () => {
  const path = join(temporaryDirectory(), "s");
  const { fork } = await import("node:child_process");
  const script = "require('net').createServer().listen(process.argv[1], () => process.send('up'))";
  const child = fork("-e", [], { execArgv: ["-e", script, path] });
  await new Promise((resolve) => child.once("message", resolve));
  const dead = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGKILL");
  await dead;
  expect(existsSync(path)).toBe(true);
  await startPlane({ endpoint: `ipc://${path}` });
});

test("refuses addresses that are open to others, not free, or not addresses", async () => {
  const directory = temporaryDirectory();
  const open = join(directory, "open");
  mkdirSync(open);
  chmodSync(open, 0o755);
  symlinkSync(directory, join(directory, "link"));
  writeFileSync(join(directory, "file"), "");
  const cases: [string, string][] = [
    [`ipc://${open}/s`, "chmod 700"],
    [`ipc://${directory}/link/s`, "chmod 700"],
    [`ipc://${directory}/file`, "not a socket"],
    [`ipc://${directory}/file/s`, "a directory that can be made"],
    ["ipc://relative/s", "absolute path"],
    [`ipc://${directory}/${"x".repeat(100)}`, "at most 103 bytes"],
    ["http://localhost", "ipc:// or tcp://"],
    ["tcp://127.0.0.1:0", "curve keys"],
  ];
  for (const [endpoint, remedy] of cases) {
    const error = await refusal({ endpoint });
    expect(error).toMatchObject({ field: "endpoint", value: endpoint });
    expect(error.remedy).toContain(remedy);
  }
});

const curveEngine = createCurveKeys();
const curve = { server: createCurveKeys(), engines: [curveEngine.publicKey] };
const keysOf = (keys: { publicKey: string; secretKey: string }) => ({
  server: curve.server.publicKey,
  ...keys,
});

test("tcp lets in the engines whose keys it was given, and nobody else", async () => {
  const { logger, lines } = recorder();
  const plane = await startPlane({ endpoint: "tcp://127.0.0.1:*", curve, policy: "random", logger });
  expect(plane.endpoint).toMatch(/^tcp:\/\/127\.0\.0\.1:\d+$/);
  await using known = new FakeEngine(plane.endpoint, {}, keysOf(curveEngine));
  await known.greet();
  await known.acknowledge(1n);
  await plane.waitForEngine();

  await using stranger = new FakeEngine(plane.endpoint, { engineId: "stranger" }, keysOf(createCurveKeys()));
  await using plain = new FakeEngine(plane.endpoint, { engineId: "plain" });
  // Nobody takes what they send, so it may still wait when their sockets close.
  for (const engine of [stranger, plain]) engine.greet().catch(() => undefined);
  await eventually(() => plane.counters().link.framesDropped.unauthenticated > 0);
  expect(plane.engines().map(({ engineId }) => engineId)).toStrictEqual([hello.engineId]);
  expect(lines.filter(({ kind }) => kind === "unauthenticated")).toHaveLength(1);
});

test("a port that is in use, and keys that are not keys", async () => {
  const server = createServer().listen(0, "127.0.0.1");
  onTestFinished(() => void server.close());
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address() as { port: number };
  expect((await refusal({ endpoint: `tcp://127.0.0.1:${port}`, curve })).remedy).toContain("in use");

  const endpoint = "tcp://127.0.0.1:*";
  const secret = "not forty characters";
  const short = { ...curve, server: { ...curve.server, secretKey: secret } };
  const error = await refusal({ endpoint, curve: short });
  expect(error.field).toBe("curve.server.secretKey");
  expect(error.message).not.toContain(secret);
  expect((await refusal({ endpoint, curve: { ...curve, engines: [] } })).field).toBe("curve.engines");
  expect((await refusal({ endpoint, curve: { ...curve, engines: ["x"] } })).field).toBe("curve.engines");
});
