import { engineFlagValues } from "../serve/flags.ts";
import { bad, type Finding, ok, warn } from "./finding.ts";

interface Conflict {
  /** Field of vLLM's configuration, as kernels/triattn/engines/vllm/probe.py refuses it. */
  readonly field: string;
  readonly flags: readonly string[];
  /** Whether a flag's value is refused; left out: whatever it is. */
  readonly refused?: (value: string) => boolean;
  readonly reason: string;
  readonly fix: string;
}

const above = (most: number) => (value: string) => Number(value) > most;
const CACHE_DTYPES = ["auto", "bfloat16", "float16", "half", "float", "fp8", "fp8_e4m3"];

/** What triattn refuses at start-up, known from the flags alone. The engine is asked again, with its own parser. */
export const conflicts: readonly Conflict[] = [
  {
    field: "speculative_config",
    flags: ["speculative-config", "spec-method", "spec-model", "spec-tokens"],
    reason: "speculative decoding is not supported",
    fix: "drop the flag",
  },
  {
    field: "kv_transfer_config",
    flags: ["kv-transfer-config"],
    reason: "KV connectors are not supported",
    fix: "drop the flag",
  },
  ...["decode-context-parallel-size", "prefill-context-parallel-size"].map((flag) => ({
    field: flag.replaceAll("-", "_"),
    flags: [flag],
    refused: above(1),
    reason: "context parallelism is not supported",
    fix: "set it to 1",
  })),
  {
    field: "enable_dbo",
    flags: ["enable-dbo"],
    reason: "micro-batching is not supported",
    fix: "drop the flag",
  },
  {
    field: "enable_dbo",
    flags: ["ubatch-size"],
    refused: above(1),
    reason: "micro-batching is not supported",
    fix: "drop the flag",
  },
  {
    field: "enable_return_routed_experts",
    flags: ["enable-return-routed-experts"],
    reason: "it reads KV slots by logical position",
    fix: "drop the flag",
  },
  {
    field: "kv_sharing_fast_prefill",
    flags: ["kv-sharing-fast-prefill"],
    reason: "layers that share a cache are not supported",
    fix: "drop the flag",
  },
  {
    field: "kv_cache_dtype",
    flags: ["kv-cache-dtype"],
    refused: (value) => !CACHE_DTYPES.includes(value),
    reason: "a quantised cache of this kind is not supported",
    fix: "use auto, bfloat16, float16 or fp8_e4m3",
  },
  {
    field: "runner",
    flags: ["runner"],
    refused: (value) => !["auto", "generate"].includes(value),
    reason: "only generation has a KV cache to compress",
    fix: "serve it without triattn",
  },
];

const SHORT: Readonly<Record<string, string>> = {
  "-sc": "--speculative-config",
  "-dcp": "--decode-context-parallel-size",
  "-pcp": "--prefill-context-parallel-size",
};

/** Findings of an engine's flags; throws ConfigError for what triattn cannot read. */
export function flagFindings(engineFlags: readonly string[]): Finding[] {
  const given = engineFlagValues(engineFlags.map((flag) => SHORT[flag] ?? flag));
  const found = conflicts.flatMap(({ flags, refused, reason, fix }) =>
    flags.flatMap((flag) => {
      const value = given.get(flag);
      if (value === undefined || (refused !== undefined && !refused(value))) return [];
      return [bad("flags", `--${flag}${value === "" ? "" : ` ${value}`}: ${reason}`, fix)];
    }),
  );
  if (given.has("enforce-eager")) {
    found.push(
      warn("flags", "--enforce-eager: no CUDA graphs, so every step is slower", "drop it, unless on a CPU"),
    );
  }
  if (found.length > 0) return found;
  return engineFlags.length === 0 ? [] : [ok("flags", "nothing in them that triattn refuses")];
}
