import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, expect, test } from "vitest";
import { python, sglangOnCpu } from "./fixtures/sglang.ts";
import { expectEndedAtWrong } from "./fixtures/traces.ts";

const root = join(import.meta.dirname, "..");
const directory = mkdtempSync(join(tmpdir(), "triattn-eval-sglang-"));
const model = join(directory, "model");
const environment = { ...sglangOnCpu, XDG_DATA_HOME: directory };

afterAll(() => rmSync(directory, { recursive: true, force: true }));

async function run(command: string, ...args: string[]): Promise<string> {
  const options = { cwd: root, env: environment, timeout: 1_100_000, maxBuffer: 2 ** 26 };
  return (await promisify(execFile)(command, args, options)).stdout;
}

const triattn = (...args: string[]) =>
  run(process.execPath, "--import", "tsx", join("packages", "cli", "src", "bin.ts"), ...args);

/** The tasks' model, untrained. */
const MAKE = `
import sys, pathlib, torch
sys.path.insert(0, "examples/tiny-reasoner")
from model import SHAPES, TinyReasoner, export
torch.manual_seed(0)
export(TinyReasoner(SHAPES["micro"]), pathlib.Path(sys.argv[1]))
`;

test("tasks are evaluated in a real SGLang: rows of every arm, and proof that it compressed", async () => {
  await run(python, "-c", MAKE, model);
  await triattn("eval", "tokenizer", model);
  const text = join(directory, "text.txt");
  writeFileSync(text, "a1b2c3d4e5\n".repeat(60));
  const what = ["--policy", "keydiff", "--keep", "1/4", "--tasks", "passcode,fidelity", "--lengths", "300"];
  const texts = ["--text", text, "--text-length", "320"];
  const rows = ["--limit", "2", ...texts, "--out", join(directory, "rows.jsonl"), "--json", "--whole"];
  const out = await triattn("eval", model, "--backend", "sglang", "--python", python, ...what, ...rows);
  const { engine, tasks } = JSON.parse(out.trim().split("\n").at(-1) ?? "");
  expect(engine).toEqual({ name: "sglang", version: "0.5.17", runner: "overlap" });
  expect(Object.keys(tasks.passcode)).toEqual(["full", "random", "streaming", "keydiff"]);
  for (const [arm, result] of Object.entries<Record<string, number>>(tasks.passcode)) {
    expect([arm, result.total, result.preemptions]).toEqual([arm, 2, 0]);
    if (arm === "full") {
      expect(result).toMatchObject({ rounds: 0, tokensEvicted: 0, keptRatio: 1 });
    } else {
      // Nothing ends an untrained model's answers, so each is as long as it may be.
      expect([arm, result.tokensGenerated, result.tokensEvicted]).toEqual([
        arm,
        tasks.passcode.full.tokensGenerated,
        Number(result.rounds) * 64,
      ]);
      expect([arm, result.rounds]).toEqual([arm, 6]);
      expect(result.keptRatio).toBeLessThan(0.5);
    }
  }
  // A budget of 80: rounds between chunks of 64, once 144 are resident; full KV agrees with itself.
  expect(tasks.fidelity.full).toMatchObject({ rounds: 0, figures: { agreement: 1, kl: 0 } });
  for (const arm of ["random", "streaming", "keydiff"]) {
    const { rounds, tokensEvicted, figures } = tasks.fidelity[arm];
    expect([arm, rounds, tokensEvicted]).toEqual([arm, 4, 2 * (112 + 64)]);
    expect(figures.nll).toBeCloseTo(tasks.fidelity.full.figures.nll, 0);
  }

  const few = ["--keep", "1/16", "--window", "8", "--tasks", "recall", "--lengths", "600", "--limit", "3"];
  const own = ["--backend", "sglang", "--python", python, "--json", "--out", join(directory, "own.jsonl")];
  const ended = await triattn("eval", "tiny", ...few, ...own);
  expectEndedAtWrong(JSON.parse(ended.trim().split("\n").at(-1) ?? "").tasks.recall, 3);
}, 1_200_000);
