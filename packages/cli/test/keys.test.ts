import { chmodSync, existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { createControlPlane, readCurve } from "@triattn/control";
import { afterEach, expect, onTestFinished, test, vi } from "vitest";
import { run } from "../src/program.ts";
import { serve } from "../src/serve/serve.ts";
import { fakeEnvironment, fakeOptions, TemporaryDirectory } from "./helpers.ts";

afterEach(() => {
  vi.restoreAllMocks();
  process.exitCode = 0;
});

/** Runs `triattn keys …`: its exit code and what it printed. */
async function keys(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const stdout = vi.spyOn(process.stdout, "write").mockReturnValue(true);
  const stderr = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  const code = await run(["keys", ...args]);
  const result = { code, out: stdout.mock.calls.join(""), err: stderr.mock.calls.join("") };
  vi.restoreAllMocks();
  return result;
}

const mode = (path: string) => (statSync(path).mode & 0o777).toString(8);

test("keys are made for their owner alone, and never overwritten", async () => {
  using directory = new TemporaryDirectory();
  const dir = join(directory.path, "new", "keys");
  const made = await keys("create", "--dir", dir);
  expect(made.code).toBe(0);
  expect(made.out).toMatch(/triattn serve MODEL --listen tcp:\/\/0\.0\.0\.0:9471 --keys /);
  const server = JSON.parse(readFileSync(join(dir, "server.json"), "utf8"));
  const engine = JSON.parse(readFileSync(join(dir, "engines", "engine.json"), "utf8"));
  for (const { secretKey } of [server, engine]) expect(made.out).not.toContain(secretKey);
  expect([mode(dir), mode(join(dir, "engines"))]).toEqual(["700", "700"]);
  for (const file of ["server.json", "engines.allow", "engines/engine.json"])
    expect(mode(join(dir, file))).toBe("600");
  expect(readdirSync(dir).sort()).toEqual(["engines", "engines.allow", "server.json"]);

  const again = await keys("create", "--dir", dir, "--json");
  expect(again.code).toBe(2);
  expect(again.out).toMatch(/server\.json.*is there already and is not overwritten/);
  expect(JSON.parse(readFileSync(join(dir, "server.json"), "utf8"))).toEqual(server);

  expect((await keys("add", "gpu-2", "--dir", dir)).code).toBe(0);
  expect((await keys("add", "gpu-2", "--dir", dir)).err).toMatch(/gpu-2\.json: is there already/);
  expect((await keys("add", "../up", "--dir", dir)).err).toMatch(/name = \.\.\/up: small letters/);
  const listed = JSON.parse((await keys("list", "--dir", dir, "--json")).out);
  expect(listed).toMatchObject({
    serverPublicKey: server.publicKey,
    engines: [{ name: "engine" }, { name: "gpu-2" }],
  });
  expect(JSON.parse((await keys("env", "engine", "--dir", dir, "--json")).out)).toEqual({
    TRIATTN_CURVE_SERVER_KEY: server.publicKey,
    TRIATTN_CURVE_PUBLIC_KEY: engine.publicKey,
    TRIATTN_CURVE_SECRET_KEY: engine.secretKey,
  });
  expect((await keys("revoke", "engine", "--dir", dir)).code).toBe(0);
  expect(existsSync(join(dir, "engines", "engine.json"))).toBe(false);
  expect(readCurve(dir).engines).toEqual([listed.engines[1].publicKey]);
  expect((await keys("revoke", "nobody", "--dir", dir)).err).toMatch(
    /one of the engines that may connect: gpu-2/,
  );
});

test("keys that others can read, are missing or damaged are refused, and no secret is shown", async () => {
  using directory = new TemporaryDirectory();
  const dir = join(directory.path, "keys");
  expect((await keys("list", "--dir", dir)).err).toMatch(/is not there: `triattn keys create` makes keys/);
  await keys("create", "--dir", dir);
  chmodSync(join(dir, "server.json"), 0o640);
  expect((await keys("list", "--dir", dir)).err).toMatch(/server\.json: others can read it: chmod 600/);
  chmodSync(join(dir, "server.json"), 0o600);
  chmodSync(dir, 0o755);
  expect((await keys("list", "--dir", dir)).err).toMatch(/keys: others can read it: chmod 700/);
  chmodSync(dir, 0o700);
  directory.write("keys/server.json", '{"publicKey": "short", "secretKey": "hunter2"}');
  const damaged = await keys("list", "--dir", dir);
  expect(damaged.err).toMatch(/is not a file of `triattn keys`/);
  expect(damaged.err).not.toContain("hunter2");
});

test("serve over tcp: its own engine gets in by the files, and the plan shows no secret", async () => {
  using directory = new TemporaryDirectory();
  const dir = join(directory.path, "keys");
  await keys("create", "--dir", dir);
  const lines: string[] = [];
  const served = await serve({
    ...fakeOptions("", { environment: fakeEnvironment(), listen: "tcp://127.0.0.1:0", keys: dir }),
    onLine: (line) => lines.push(line),
  });
  onTestFinished(() => served.kill().then(() => {}));
  expect(served.controlPlane.endpoint).toMatch(/^tcp:\/\/127\.0\.0\.1:[1-9]/);
  expect(served.controlPlane.engines()).toMatchObject([{ connected: true }]);
  const { secretKey } = JSON.parse(readFileSync(join(dir, "engines", "engine.json"), "utf8"));
  const { describe, explain } = await import("../src/serve/output.ts");
  expect(JSON.stringify(describe(served.plan)) + explain(served.plan)).not.toContain(secretKey);
  expect(describe(served.plan)).toMatchObject({ listen: "tcp://127.0.0.1:0" });
  await served.stop();
  await expect(serve(fakeOptions("", { listen: "tcp://127.0.0.1:0", keys: "/nowhere" }))).rejects.toThrow(
    /keys = \/nowhere: is not there/,
  );
  await expect(serve(fakeOptions("", { keys: dir }))).rejects.toThrow(/--keys = .*give --listen tcp/);
}, 60_000);

test("a control plane from files", async () => {
  using directory = new TemporaryDirectory();
  const dir = join(directory.path, "keys");
  await keys("create", "--dir", dir, "--engine", "gpu-1");
  const plane = await createControlPlane({ endpoint: "tcp://127.0.0.1:0", curve: readCurve(dir) });
  expect(plane.endpoint).toMatch(/^tcp:/);
  await plane.close();
});
