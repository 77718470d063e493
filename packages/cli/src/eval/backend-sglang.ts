import { engineFlagValues } from "../serve/flags.ts";
import {
  beforeLastStep,
  cpuThreads,
  type EngineNeeds,
  type EvalBackend,
  type Grown,
  STREAM_INTERVAL,
} from "./backend.ts";
import { sglangClient } from "./client-sglang.ts";

/** Of its context and of its pool SGLang keeps a few tokens back, and cuts answers that would need them. */
const SPARE = 8;

/** Flags for a CPU: a pool in which every request of the full arm fits whole. */
function cpuFlags({ concurrency, longest, budget, interval }: EngineNeeds): string[] {
  const pool = Math.max((concurrency + 1) * ((longest ?? 4096) + SPARE), budget + 2 * interval);
  return [
    ...["--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native"],
    ...["--sampling-backend", "pytorch", "--skip-server-warmup"],
    ...["--max-total-tokens", String(pool)],
  ];
}

/** Tokens before the last chunk of a prefill; none where chunks are as large as SGLang likes. */
const beforeLastChunk = ({ prompt, chunk }: Grown): number =>
  chunk === null ? 0 : Math.floor((prompt - 1) / chunk) * chunk;

export const sglang: EvalBackend = {
  onCpu: (_, flags, { SGLANG_USE_CPU_ENGINE: asked }) =>
    (engineFlagValues(flags).get("device") ?? (asked === undefined || asked === "0" ? "" : "cpu")) === "cpu",
  flags(needs, served, cpu) {
    const { profile, concurrency, interval, longest } = needs;
    return [
      ...["--port", "0", "--host", "127.0.0.1", "--served-model-name", served],
      ...["--stream-interval", String(STREAM_INTERVAL)],
      // An arm must not find what another one computed.
      "--disable-radix-cache",
      ...["--max-running-requests", String(concurrency)],
      ...(longest === null ? [] : ["--context-length", String(longest + SPARE)]),
      // A round fires between chunks: one interval each, as while decoding.
      ...(profile === "score" ? ["--chunked-prefill-size", String(interval)] : []),
      ...(cpu ? cpuFlags(needs) : []),
    ];
  },
  enginesOnCpu: 1,
  cpuEnvironment: (environment) => ({
    OMP_NUM_THREADS: cpuThreads(environment),
    SGLANG_USE_CPU_ENGINE: "1",
  }),
  client: sglangClient,
  // Between chunks, and before decode steps from the second one on.
  firesAt: (trigger, request) =>
    (request.generated >= 3 && beforeLastStep(request) >= trigger) || beforeLastChunk(request) >= trigger,
  samplingNote: (flags) =>
    engineFlagValues(flags).has("enable-deterministic-inference")
      ? null
      : "SGLang draws answers without their seeds, other ones each time; with them by -- --enable-deterministic-inference",
};
