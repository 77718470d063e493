import { engineFlagValues } from "../serve/flags.ts";
import { cpuThreads, type EngineNeeds, type EvalBackend } from "./backend.ts";
import { sglangClient } from "./client-sglang.ts";

/** Of its context and of its pool SGLang keeps a few tokens back, and cuts answers that would need them. */
const SPARE = 8;

/** Flags for a CPU: a pool in which every request of the full arm fits whole. */
function cpuFlags({ concurrency, longest }: EngineNeeds): string[] {
  return [
    ...["--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native"],
    ...["--sampling-backend", "pytorch", "--skip-server-warmup"],
    ...["--max-total-tokens", String((concurrency + 1) * ((longest ?? 4096) + SPARE))],
  ];
}

export const sglang: EvalBackend = {
  onCpu: (_, flags, { SGLANG_USE_CPU_ENGINE: asked }) =>
    (engineFlagValues(flags).get("device") ?? (asked === undefined || asked === "0" ? "" : "cpu")) === "cpu",
  flags(needs, served, cpu) {
    const { profile, concurrency, interval, longest } = needs;
    return [
      ...["--port", "0", "--host", "127.0.0.1", "--served-model-name", served],
      // An arm must not find what another one computed.
      "--disable-radix-cache",
      ...["--max-running-requests", String(concurrency)],
      ...(longest === null ? [] : ["--context-length", String(longest + SPARE)]),
      // A round fires between chunks: one interval each, as while decoding.
      ...(profile === "score" ? ["--chunked-prefill-size", String(interval)] : []),
      ...(cpu ? cpuFlags(needs) : []),
    ];
  },
  cpuEnvironment: (environment) => ({
    OMP_NUM_THREADS: cpuThreads(environment),
    SGLANG_USE_CPU_ENGINE: "1",
  }),
  client: sglangClient,
  // Before decode steps only, from the second one on, and not before the last one.
  roundsFrom: 3,
  noScores: "SGLang's rounds fire before decode steps only, not while a prompt is prefilled",
  samplingNote: (flags) =>
    engineFlagValues(flags).has("enable-deterministic-inference")
      ? null
      : "SGLang draws answers without their seeds, other ones each time; with them by -- --enable-deterministic-inference",
};
