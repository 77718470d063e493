import { mkdirSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, expect, test, vi } from "vitest";
import { fitRoofline } from "../src/plan/fit.ts";
import { findGpu, gpus, quantity } from "../src/plan/gpus.ts";
import { check, measuredPoints, predictMs } from "../src/plan/measured.ts";
import { readModel } from "../src/plan/model.ts";
import { makePlan, type PlanOptions } from "../src/plan/plan.ts";
import { data, table } from "../src/plan/report.ts";
import { roofline } from "../src/plan/roofline.ts";
import { run } from "../src/program.ts";
import { root, TemporaryDirectory } from "./helpers.ts";

const benchmark = (name: string) => join(root, "docs", "benchmarks", name);
const files = [benchmark("vllm-h200.json"), benchmark("vllm-h200-steps.json")];
const qwen = readModel("Qwen/Qwen3-8B");
const options: PlanOptions = {
  context: 32_768,
  concurrency: 340,
  budgets: [],
  interval: 128,
  blockSize: 16,
  kvDtype: "bfloat16",
  utilization: 0.92,
  tensorParallel: 1,
};

afterEach(() => {
  vi.restoreAllMocks();
  process.exitCode = 0;
});

test("predictions stand beside the committed measurements", () => {
  for (const file of files) {
    const { meanError, worstError } = check(file);
    expect(meanError, file).toBeLessThan(0.03);
    expect(worstError, file).toBeLessThan(0.05);
  }
  expect(Math.abs(check(files[0] as string).cacheTokens?.error ?? 1)).toBeLessThan(0.01);
  // The comparison bites: another card's bandwidth is found out.
  const { points } = measuredPoints(files[0] as string);
  const slower = { ...roofline, bandwidth: roofline.bandwidth * 0.8, raggedBandwidth: 0.7 };
  for (const point of points) expect(predictMs(point, slower) / point.measuredMs).toBeGreaterThan(1.08);
});

test("the constants are those that fit the committed measurements best", () => {
  expect(fitRoofline(files.flatMap((file) => measuredPoints(file).points))).toEqual(roofline);
});

test("sizes of known models", () => {
  const { rows, memory } = makePlan(qwen, findGpu("H200"), options);
  expect(memory.kvBytesPerLayer * qwen.layers).toBe(147_456);
  expect(qwen.parameters.total / 1e9).toBeCloseTo(8.19, 2);
  expect(readModel("qwen3-14b").parameters.total / 1e9).toBeCloseTo(14.77, 2);
  expect(readModel("gpt-oss-120b").parameters.total / 1e9).toBeCloseTo(116.8, 1);
  expect(readModel("deepseek-r1-distill-llama-8b").parameters.total / 1e9).toBeCloseTo(8.03, 2);
  expect(readModel("HuggingFaceTB/SmolLM2-135M-Instruct").parameters.total / 1e6).toBeCloseTo(134.5, 0);
  expect(rows[0]).toMatchObject({ budget: null, fit: 24 });
  const fp8 = makePlan(readModel("qwen3-8b", "fp8"), findGpu("h200"), { ...options, kvDtype: "fp8" });
  expect(fp8.memory.kvBytesPerLayer * 2).toBe(memory.kvBytesPerLayer);
  expect(fp8.memory.weightBytes).toBeLessThan(0.6 * memory.weightBytes);
});

test("layers with windows keep their window, and the model is not compressed", () => {
  const gpt = readModel("gpt-oss-120b");
  const plan = makePlan(gpt, findGpu("h100"), { ...options, concurrency: 8 });
  const perLayer = 2 * 8 * 64 * 2;
  expect(plan.rows).toHaveLength(1);
  expect(plan.rows[0]?.kvBytesPerRequest).toBe(perLayer * 18 * (32_768 + 128));
  expect(plan.recommended).toEqual({ budget: null, reason: expect.stringMatching(/18 of 36 layers/) });
});

test("the recommended budget holds every request, and one step more would not", () => {
  const property = fc.property(
    fc.constantFrom(...Object.keys(gpus)),
    fc.integer({ min: 1, max: 400 }),
    fc.integer({ min: 1024, max: 40_960 }),
    fc.constantFrom(16, 32, 128),
    (name, concurrency, context, blockSize) => {
      const asked = { ...options, concurrency, context, blockSize };
      const model = readModel("qwen3-8b", "fp8");
      const gpu = findGpu(name);
      const plan = makePlan(model, gpu, asked);
      const { budget } = plan.recommended;
      const requests = Math.min(concurrency, plan.memory.maxRequests);
      if (budget === null) return;
      const at = (b: number) => makePlan(model, gpu, { ...asked, budgets: [b] }).rows[1];
      const own = at(budget);
      // A budget close to the context saves nothing worth a row of its own.
      if (own !== undefined) expect(own.fit).toBeGreaterThanOrEqual(requests);
      const more = at(budget + 2 * 128);
      if (more !== undefined) expect(more.fit).toBeLessThan(requests);
    },
  );
  fc.assert(property, { numRuns: 200 });
});

test("a model's files say what its weights take; without a bandwidth there are sizes and no times", () => {
  using directory = new TemporaryDirectory();
  const config = { ...JSON.parse(JSON.stringify(shape)), torch_dtype: "bfloat16" };
  mkdirSync(join(directory.path, "m"));
  directory.write("m/config.json", JSON.stringify(config));
  directory.write("m/model.safetensors.index.json", JSON.stringify({ metadata: { total_size: 12345 } }));
  const model = readModel(join(directory.path, "m"));
  expect(model.fileBytes).toBe(12345);
  const gpu = {
    name: "a GPU of 24GiB",
    memoryBytes: quantity("--vram", "24GiB", "B"),
    bandwidth: null,
    flops: null,
  };
  const plan = makePlan(model, gpu, { ...options, context: 4096, budgets: [1024] });
  expect(plan.rows.map(({ stepMs }) => stepMs)).toEqual([null, null]);
  expect(table(plan)).toMatch(/need the memory's bandwidth/);
  expect(JSON.parse(JSON.stringify(data(plan)))).toMatchObject({
    rows: [{ budget: null }, { budget: 1024 }],
  });
});

const shape = {
  model_type: "llama",
  hidden_size: 256,
  intermediate_size: 512,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 1000,
  max_position_embeddings: 4096,
};

test("quantities and cards by the names that people use", () => {
  expect(quantity("--vram", "24GiB", "B")).toBe(24 * 2 ** 30);
  expect(quantity("--bandwidth", "1008GB/s", "B/s")).toBe(1008e9);
  expect(() => quantity("--vram", "lots", "B")).toThrow(
    /--vram = lots: a number with its unit, such as 24GiB/,
  );
  for (const name of ["4090", "RTX 4090", "rtx-4090", "NVIDIA GeForce RTX 4090"]) {
    expect(findGpu(name)).toBe(gpus["4090"]);
  }
  expect(findGpu("A100")).toBe(gpus.a100);
  // As drivers name them, in reports of benchmarks.
  expect(findGpu("NVIDIA H100 80GB HBM3")).toBe(gpus.h100);
  expect(findGpu("NVIDIA H100 NVL")).toBe(gpus["h100-nvl"]);
  expect(findGpu("NVIDIA A100-SXM4-40GB")).toBe(gpus["a100-40g"]);
  expect(findGpu("NVIDIA A100-SXM4-80GB")).toBe(gpus.a100);
  expect(() => findGpu("h1000")).toThrow(/--gpu = h1000/);
});

test("one clear line for each mistake", async () => {
  const stderr = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  const cases: [string[], RegExp][] = [
    [[], /model = missing: name a model/],
    [["qwen3-8b"], /--gpu = missing: .*--vram 24GiB/],
    [["qwen3-8b", "--gpu", "z9"], /--gpu = z9: one of .*h200/],
    [["nobody/nothing", "--gpu", "h200"], /model = nobody\/nothing: is not on this machine.*Qwen\/Qwen3-14B/],
    [["qwen3-8b", "--gpu", "h200", "--context", "1m"], /--context = 1m: a whole number of tokens/],
    [["qwen3-8b", "--gpu", "h200", "--context", "99k"], /--context = 101376: at most .*40960/],
    [["qwen3-32b", "--gpu", "3090"], /the weights take 61\.0 GiB .*--tensor-parallel/],
    [["qwen3-8b", "--gpu", "h200", "--memory-utilization", "2"], /--memory-utilization = 2/],
    [["--check", "/nowhere.json"], /--check = \/nowhere\.json: a JSON file that can be read/],
  ];
  for (const [args, message] of cases) {
    stderr.mockClear();
    expect(await run(["plan", ...args])).toBe(2);
    expect(stderr.mock.calls.join("")).toMatch(message);
  }
});

test("--check and --json", async () => {
  const stdout = vi.spyOn(process.stdout, "write").mockReturnValue(true);
  expect(await run(["plan", "--check", files[0] as string])).toBe(0);
  expect(stdout.mock.calls.join("")).toMatch(/step time: mean error \d\.\d %, worst \d\.\d %/);
  stdout.mockClear();
  expect(await run(["plan", "qwen3-8b", "--gpu", "4090", "--concurrency", "8", "--json"])).toBe(0);
  const { recommended, provenance } = JSON.parse(stdout.mock.calls.join(""));
  expect(recommended.budget).toBeGreaterThan(1024);
  expect(provenance).toMatch(/extrapolated, not measured: this card/);
});
