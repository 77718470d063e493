import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Served, serve } from "triattn";
import { afterAll, expect, test } from "vitest";
import { python, sglangOnCpu } from "./fixtures/sglang.ts";

const root = join(import.meta.dirname, "..");
const directory = mkdtempSync(join(tmpdir(), "triattn-sglang-"));
const model = join(directory, "model");
const engineFlags = [
  ...["--port", "0", "--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native"],
  ...["--sampling-backend", "pytorch", "--max-total-tokens", "2048", "--context-length", "1024"],
  ...["--served-model-name", "tiny", "--skip-server-warmup"],
];

let served: Served | undefined;
const lines: string[] = [];

afterAll(async () => {
  await served?.kill();
  rmSync(directory, { recursive: true, force: true });
});

async function complete(tokens: number, options?: object): Promise<{ status: number; text: string }> {
  const response = await fetch(`${served?.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model: "tiny",
      prompt: "a lighthouse",
      max_tokens: tokens,
      ignore_eos: true,
      ...(options === undefined ? {} : { custom_params: options }),
    }),
  });
  return { status: response.status, text: await response.text() };
}

const counters = () => served?.controlPlane.engines()[0]?.counters;

test("SGLang serves under a control plane, each request inside its budget, the policy changed meanwhile", async () => {
  const made = spawnSync(python, [join(root, "test", "fixtures", "tiny_checkpoint.py"), model]);
  expect(made.stderr.toString().includes("Traceback"), made.stderr.toString()).toBe(false);
  const pin = { window: 16 };
  served = await serve({
    model,
    backend: "sglang",
    python,
    policy: { name: "mine", budget: 64, interval: 16, pin, terms: [{ kind: "keydiff" }] },
    environment: sglangOnCpu,
    engineFlags,
    onLine: (line) => lines.push(line),
  }).catch((error) => {
    throw new Error(`${error}\n${lines.slice(-60).join("\n")}`);
  });
  const [engine] = served.controlPlane.engines();
  expect(engine?.hello.engine).toMatchObject({ name: "sglang", version: "0.5.17", runner: "overlap" });
  expect(engine?.hello.cache).toMatchObject({ blockSize: 1, blocks: 2048 });

  const answers = await Promise.all([complete(200), complete(200, { triattn_budget: 0 })]);
  for (const { status, text } of answers) {
    expect([status, text]).toEqual([200, expect.anything()]);
    expect(JSON.parse(text).usage.completion_tokens).toBe(200);
  }
  const { revision, engines } = await served.controlPlane.setPolicy({
    name: "recent",
    budget: 48,
    interval: 16,
    pin,
    terms: [{ kind: "recency" }],
  });
  expect(revision).toBe(2);
  expect(engines).toHaveLength(1);
  const rules = [{ name: "batch", match: { tags: ["batch"] }, budget: 32 }];
  const ruled = { name: "ruled", budget: 0, pin, terms: [{ kind: "random" }] } as const;
  await served.controlPlane.setPolicy({ ...ruled, interval: 16 }, { rules });
  expect((await complete(150, { triattn_tags: "batch" })).status).toBe(200);

  const refused: [object, RegExp][] = [
    [{ triattn_budget: 10 }, /triattn_budget = 10: too small/],
    [{ triattn_budget: "many" }, /triattn_budget/],
    [{ triattn_budgt: 64 }, /no such request option/],
  ];
  for (const [options, reason] of refused) {
    const answer = await complete(4, options);
    expect([options, answer.status]).toEqual([options, 400]);
    expect(answer.text).toMatch(reason);
  }
  // One request inside 64 of 211 tokens, a round every 16; one inside 32 by the rule; one never compressed.
  // Waited for: reports come twice a second, and the engine's own warm-up is a request that finished too.
  await expect.poll(() => counters()?.rounds, { timeout: 10_000 }).toBeGreaterThanOrEqual(8 + 7);
  expect(counters()?.requestsFinished).toBeGreaterThanOrEqual(3);
  expect(Number(counters()?.tokensEvicted)).toBe(Number(counters()?.rounds) * 16);

  const exit = await served.stop();
  expect(exit.asked).toBe(true);
}, 600_000);
