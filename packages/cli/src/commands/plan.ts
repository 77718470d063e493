import { ConfigError } from "@triattn/control";
import { Command, Option } from "commander";
import { findGpu, type Gpu, quantity, tokenCount } from "../plan/gpus.ts";
import { check } from "../plan/measured.ts";
import { type KvDtype, kvDtypes } from "../plan/memory.ts";
import { readModel, type WeightDtype, weightDtypes } from "../plan/model.ts";
import { makePlan } from "../plan/plan.ts";
import { checkTable, data, table } from "../plan/report.ts";
import { withHelp } from "./help.ts";
import { wholeNumber } from "./serve.ts";

interface Flags {
  gpu?: string;
  vram?: string;
  bandwidth?: string;
  tflops?: string;
  tensorParallel: number;
  context?: number;
  concurrency: number;
  budget?: number[];
  interval: number;
  kvDtype: KvDtype;
  weightsDtype?: WeightDtype;
  blockSize: number;
  memoryUtilization: string;
  check?: string;
  json?: boolean;
}

const DEFAULT_CONTEXT = 32_768;

/** The GPU that was named or described. Throws ConfigError. */
function gpuOf({ gpu, vram, bandwidth, tflops }: Flags): Gpu {
  if (gpu === undefined && vram === undefined) {
    throw new ConfigError("--gpu", "missing", "the card, such as h200 or 4090, or its memory: --vram 24GiB");
  }
  const known = gpu === undefined ? undefined : findGpu(gpu);
  const memoryBytes = vram === undefined ? undefined : quantity("--vram", vram, "B");
  const speed = bandwidth === undefined ? undefined : quantity("--bandwidth", bandwidth, "B/s");
  const flops = tflops === undefined ? undefined : quantity("--tflops", `${tflops}T`, "FLOPS");
  return {
    name: known?.name ?? `a GPU of ${vram}`,
    memoryBytes: memoryBytes ?? known?.memoryBytes ?? 0,
    bandwidth: speed ?? known?.bandwidth ?? null,
    // Without it decoding is taken to be bound by memory alone.
    flops: flops ?? known?.flops ?? (speed === undefined ? null : Number.POSITIVE_INFINITY),
  };
}

function share(text: string): number {
  const value = Number(text);
  if (!(value > 0 && value <= 1))
    throw new ConfigError("--memory-utilization", text, "a number above 0, up to 1");
  return value;
}

/** `triattn plan`: sizes, times and a budget, before anything is started. */
export function planCommand(): Command {
  const command = new Command("plan")
    .description(
      "What fits a GPU with and without a budget, how long a step would take, and a budget that fits. Nothing is downloaded.",
    )
    .argument("[model]", "a model directory, a config.json, or the name of a model that triattn knows")
    .option("--gpu <name>", "h200, h100, b200, a100, l40s, l4, a10, 5090, 4090, 3090, …")
    .option("--vram <size>", "the GPU's memory, such as 24GiB: instead of --gpu, or of what that has")
    .option("--bandwidth <speed>", "the memory's bandwidth, such as 1008GB/s (default: the GPU's data sheet)")
    .option("--tflops <n>", "dense bfloat16 TFLOPS (default: the GPU's data sheet)")
    .option("--tensor-parallel <n>", "GPUs that share the model", wholeNumber("--tensor-parallel", 1), 1)
    .option(
      "--context <tokens>",
      "tokens that a request grows to (default: 32k, or what the model takes)",
      tokenCount("--context"),
    )
    .option("--concurrency <n>", "requests that ask at once", wholeNumber("--concurrency", 1), 64)
    .option(
      "--budget <tokens>",
      "a budget to show; may be given several times (default: the recommended one, and powers of two)",
      (text: string, before: number[] | undefined) => [...(before ?? []), tokenCount("--budget")(text)],
    )
    .option("--interval <tokens>", "interval of the policy", wholeNumber("--interval", 1), 128)
    .addOption(
      new Option("--kv-dtype <dtype>", "of the KV cache").choices(Object.keys(kvDtypes)).default("bfloat16"),
    )
    .addOption(
      new Option("--weights-dtype <dtype>", "of the weights (default: as the configuration says)").choices(
        Object.keys(weightDtypes),
      ),
    )
    .option("--block-size <tokens>", "tokens of a block of the cache", wholeNumber("--block-size", 1), 16)
    .option("--memory-utilization <share>", "vLLM's --gpu-memory-utilization", "0.92")
    .option(
      "--check <file>",
      "compare predictions with a report of `triattn bench engine`, instead of a plan",
    )
    .option("--json", "print one line of JSON")
    .action((model: string | undefined, flags: Flags) => {
      const print = (text: string) => process.stdout.write(`${text}\n`);
      if (flags.check !== undefined) {
        const checked = check(flags.check);
        print(flags.json ? JSON.stringify(checked) : checkTable(checked));
        return;
      }
      if (model === undefined) {
        throw new ConfigError("model", "missing", "name a model: triattn plan Qwen/Qwen3-8B --gpu h200");
      }
      const gpu = gpuOf(flags);
      const read = readModel(model, flags.weightsDtype);
      const plan = makePlan(read, gpu, {
        context: flags.context ?? Math.min(DEFAULT_CONTEXT, read.maxPositions),
        concurrency: flags.concurrency,
        budgets: flags.budget ?? [],
        interval: flags.interval,
        blockSize: flags.blockSize,
        kvDtype: flags.kvDtype,
        utilization: share(flags.memoryUtilization),
        tensorParallel: flags.tensorParallel,
      });
      print(flags.json ? JSON.stringify(data(plan)) : table(plan));
    });
  return withHelp(command, {
    codes: [[2, "a flag, the model or a file cannot be used, or the model does not fit at all"]],
    examples: [
      "triattn plan Qwen/Qwen3-8B --gpu h200 --context 32k --concurrency 64",
      "triattn plan ./Qwen3-8B --gpu 4090 --weights-dtype fp8 --kv-dtype fp8 --concurrency 8",
      "triattn plan --check docs/benchmarks/vllm-h200.json",
    ],
  });
}
