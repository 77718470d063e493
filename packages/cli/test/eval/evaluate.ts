import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { vi } from "vitest";
import { drawTrace, traceTask } from "../../src/eval/tasks/index.ts";
import { EOS, encode, tokenizerJson } from "../../src/eval/tasks/vocabulary.ts";
import { run } from "../../src/program.ts";
import { fakeEngine, fakeSglang, python, root, type TemporaryDirectory } from "../helpers.ts";

/** A model directory with the tasks' tokenizer, and the right answers for an engine without a model. */
function prepareFiles({ path }: TemporaryDirectory): { model: string; answers: string } {
  const model = join(path, "model");
  mkdirSync(model, { recursive: true });
  writeFileSync(join(model, "tokenizer.json"), JSON.stringify(tokenizerJson()));
  const config = readFileSync(join(root, "stats", "configs", "qwen3-8b.json"), "utf8");
  writeFileSync(join(model, "config.json"), JSON.stringify({ ...JSON.parse(config), vocab_size: 17 }));
  const answers: Record<string, number[]> = {};
  for (const name of ["grammar", "recall"]) {
    for (let index = 0; index < 6; index++) {
      const trace = drawTrace(traceTask(name), { split: "heldout", seed: 0, index, length: 900 });
      answers[encode(trace.prompt).join(",")] = [...encode(trace.expected), EOS];
    }
  }
  writeFileSync(join(path, "answers.json"), JSON.stringify(answers));
  return { model, answers: join(path, "answers.json") };
}

export interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the evaluation on the engine without a model: vLLM, or SGLang where the flags name it. */
export async function evaluate(
  directory: TemporaryDirectory,
  words: string,
  ...more: string[]
): Promise<Ran> {
  const { model, answers } = prepareFiles(directory);
  vi.stubEnv("PYTHONPATH", more.includes("sglang") ? fakeSglang : fakeEngine);
  vi.stubEnv("FAKE_ENGINE", words);
  vi.stubEnv("FAKE_ANSWERS", answers);
  vi.stubEnv("XDG_DATA_HOME", directory.path);
  const out = vi.spyOn(process.stdout, "write").mockReturnValue(true);
  const err = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  const flags = [
    "--python",
    python,
    "--policy",
    "keydiff",
    "--keep",
    "1/4",
    "--lengths",
    "900",
    "--limit",
    "6",
  ];
  const code = await run(["eval", model, ...flags, "--tasks", "grammar,recall", ...more]);
  const ran = { code, stdout: out.mock.calls.join(""), stderr: err.mock.calls.join("") };
  vi.restoreAllMocks();
  return ran;
}

/** The report, or the error, that ends a run. */
export const lastJson = ({ stdout }: Ran) => JSON.parse(stdout.trimEnd().split("\n").at(-1) ?? "");
