import { chmodSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { progressReporter, Rate } from "../src/calibrate/progress.ts";
import { run } from "../src/program.ts";
import { TemporaryDirectory } from "./helpers.ts";

const done = {
  type: "done",
  out: "x",
  model: "m",
  fingerprint: "f".repeat(32),
  tokens: 20,
  layers: 1,
  queryHeads: 1,
  learned: null,
  notices: [],
  concentration: 0.5,
};
const probed = {
  python: [3, 12, 0],
  executable: "python",
  engine: { version: "0.32.0", distribution: "vllm", servers: [true, true] },
  missing: [],
};
const progress = (done: number) => ({
  type: "progress" as const,
  phase: "measure" as const,
  done,
  total: 20,
});

let home: TemporaryDirectory;
let out = "";
let error = "";

beforeEach(() => {
  home = new TemporaryDirectory();
  out = error = "";
  vi.stubEnv("XDG_DATA_HOME", home.path);
  vi.spyOn(process.stdout, "write").mockImplementation((text) => {
    out += text;
    return true;
  });
  vi.spyOn(process.stderr, "write").mockImplementation((text) => {
    error += text;
    return true;
  });
});

afterEach(() => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
  home[Symbol.dispose]();
  process.exitCode = undefined;
});

/** An interpreter that has an engine, and whose calibration runs `script` (sh). */
function fakePython(script: string): string {
  const path = home.write(
    "python",
    `#!/bin/sh
if [ "$1" = -c ]; then echo '${JSON.stringify(probed)}'; exit 0; fi
echo "$PYTHONPATH" "$@" > "${home.path}/called"
${script}
`,
  );
  chmodSync(path, 0o755);
  return path;
}
const say = (message: unknown) => `echo '${JSON.stringify(message)}'`;
const calibrate = (script: string, ...args: string[]) =>
  run(["calibrate", "org/Some Model", "--python", fakePython(script), ...args]);
const called = () => readFileSync(join(home.path, "called"), "utf8");

test("the result goes to standard output, progress elsewhere, the file into the user's library", async () => {
  const script = [say(progress(10)), "echo noise", "echo noise >&2", say(progress(20)), say(done)].join("\n");
  expect(await calibrate(script, "--tokens", "20", "--text", "a", "b")).toBe(0);
  const file = join(home.path, "triattn", "stats", "some-model.safetensors");
  expect(out).toBe(`${file}: statistics of m over 20 tokens, fingerprint ${done.fingerprint}\n`);
  expect(error).toContain("measuring 20 of 20 tokens");
  expect(called()).toContain(
    `-m triattn.calibrate org/Some Model --out ${file} --tokens 20 --text a b --progress json`,
  );
  expect(called().split(" ")[0]).toMatch(/kernels$|python$/);
});

test("for programs: lines of JSON, the result last", async () => {
  const script = [
    say({ ...progress(0), phase: "load" }),
    say(progress(5)),
    "sleep 0.05",
    say(progress(20)),
    say(done),
  ];
  expect(await calibrate(script.join("\n"), "--json", "--out", "x")).toBe(0);
  const lines = out
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(lines.map(({ type }) => type)).toStrictEqual(["progress", "progress", "progress", "done"]);
  expect(lines[2]).toMatchObject({ done: 20, secondsLeft: 0 });
  expect(lines[2].perSecond).toBeGreaterThan(0);
  expect(lines[3]).toStrictEqual(done);
});

test("what the Python side refuses is one error with exit code 2", async () => {
  const refusal = { type: "error", field: "rope_theta", value: "None", remedy: "add it" };
  expect(await calibrate(`${say(refusal)}\nexit 2`)).toBe(2);
  expect(error).toContain("rope_theta = None: add it");
});

test("a Python side that dies is an unexpected error with its last words", async () => {
  expect(await calibrate("echo 'Killed by something' >&2\nexit 7")).toBe(1);
  expect(error).toMatch(/exit code 7[\s\S]*Killed by something/);
});

test.each([
  ["--tokens", "many"],
  ["--tokens", "1"],
  ["--window", "-5"],
  ["--dtype", "int4"],
])("%s %s is refused before anything runs", async (flag, value) => {
  expect(await calibrate(say(done), `${flag}=${value}`)).toBe(2);
  expect(error).toContain(flag);
  expect(() => called()).toThrow();
});

test("an interrupted calibration ends with the signal's exit code", async () => {
  const running = calibrate("exec sleep 30");
  await vi.waitFor(called, 5000);
  process.emit("SIGTERM", "SIGTERM");
  expect(await running).toBe(143);
});

test("progress on a terminal stays in one line; elsewhere there is a line each tenth", () => {
  let seconds = 0;
  const written: string[] = [];
  const output = { isTTY: true, write: (text: string) => written.push(text) };
  const report = progressReporter(output, () => seconds);
  for (const count of [0, 400, 1000]) {
    report({ ...progress(count), total: 1000 });
    seconds += 4;
  }
  expect(written.join("")).not.toContain("\n");
  expect(written[1]).toContain("measuring 400 of 1000 tokens, 100 tokens/s, 6 s left");
  written.length = 0;
  const plain = progressReporter({ write: (text: string) => written.push(text) }, () => seconds);
  for (let count = 0; count <= 1000; count += 10) plain({ ...progress(count), total: 1000 });
  expect(written).toHaveLength(11);
  expect(new Rate(() => 0).update({ ...progress(5) })).toBeNull();
});
