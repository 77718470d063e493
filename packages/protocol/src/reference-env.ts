import type { PolicyInput } from "./policy.ts";

/**
 * How the environment variables of the TriAttention reference plugin (v0.2.0) map onto a policy
 * document. A table, not code, because two programs interpret it: `triattn serve` and the plugin
 * inside the engine (kernels/triattn/reference_env.json is generated from this).
 *
 * A field is a path into the document; `terms.KIND.FIELD` addresses the term of that kind, and
 * `terms.KIND: null` takes the term out. `statistics` stands beside the document.
 */
export type ReferenceRow =
  | { readonly variable: string; readonly type: "integer"; readonly field: string }
  | { readonly variable: string; readonly type: "string"; readonly field: string }
  | {
      readonly variable: string;
      readonly type: "boolean" | "choice";
      /** What each value assigns. A boolean's values are "true" and "false". */
      readonly set: Readonly<Record<string, Readonly<Record<string, string | number | boolean | null>>>>;
      /** Values of the reference that nothing here corresponds to, each with its remedy. */
      readonly refused?: Readonly<Record<string, string>>;
      /** The row counts only when these fields, as set by the rows before, have these values. */
      readonly when?: Readonly<Record<string, string>>;
    }
  | {
      readonly variable: string;
      readonly type: "ignored";
      /** Values that ask for what happens anyway: no warning. */
      readonly silent: readonly string[];
      readonly reason: string;
    };

export interface ReferenceEnvironment {
  readonly prefix: string;
  /** Compression is off when this variable is false. */
  readonly switch: string;
  /** The reference's own defaults, which apply when its variables drive the policy. */
  readonly base: PolicyInput;
  readonly rows: readonly ReferenceRow[];
}

export const referenceEnvironment = {
  prefix: "TRIATTN_RUNTIME_",
  switch: "ENABLE_TRIATTENTION",
  base: {
    name: "triattn-runtime",
    budget: 2048,
    interval: 128,
    terms: [{ kind: "trig", offsets: "mean", maxOffset: 65536 }, { kind: "norm" }],
    normalize: "sum",
    groupAggregation: "max",
    layerAggregation: "mean",
    selection: "per_head",
    pin: { prompt: false, sinks: 0, window: 128 },
    countPrompt: true,
  },
  rows: [
    { variable: "KV_BUDGET", type: "integer", field: "budget" },
    { variable: "DIVIDE_LENGTH", type: "integer", field: "interval" },
    { variable: "WINDOW_SIZE", type: "integer", field: "pin.window" },
    {
      variable: "PRUNING_MODE",
      type: "choice",
      set: {
        per_head: { selection: "per_head" },
        per_layer_per_head: { selection: "per_layer_per_head" },
      },
      refused: {
        per_layer:
          "use per_head or per_layer_per_head: one choice per layer for all its heads does not exist here",
      },
    },
    { variable: "SPARSE_STATS_PATH", type: "string", field: "statistics" },
    {
      variable: "PROTECT_PREFILL",
      type: "boolean",
      set: { true: { "pin.prompt": true }, false: { "pin.prompt": false } },
    },
    {
      variable: "INCLUDE_PREFILL_IN_BUDGET",
      type: "boolean",
      set: { true: { countPrompt: true }, false: { countPrompt: false } },
    },
    {
      variable: "SPARSE_SCORE_AGGREGATION",
      type: "choice",
      set: { mean: { "terms.trig.offsets": "mean" }, max: { "terms.trig.offsets": "max" } },
    },
    {
      variable: "SPARSE_NORMALIZE_SCORES",
      type: "boolean",
      set: { true: { normalize: "sum" }, false: { normalize: "none" } },
    },
    {
      variable: "LAYER_PERHEAD_AGGREGATION",
      type: "choice",
      set: { max: { groupAggregation: "max" }, mean: { groupAggregation: "mean" } },
      // In the other modes the reference always takes the maximum.
      when: { selection: "per_layer_per_head" },
    },
    {
      variable: "DISABLE_MLR",
      type: "boolean",
      set: { true: { "terms.norm.residual": false }, false: {} },
    },
    { variable: "DISABLE_TRIG", type: "boolean", set: { true: { "terms.trig": null }, false: {} } },
    { variable: "DISABLE_COMPRESSION", type: "boolean", set: { true: { budget: 0 }, false: {} } },
    {
      variable: "ENABLE_KV_USAGE_TRIGGER",
      type: "ignored",
      silent: ["false"],
      reason: "a round fires on the request's own length, not on the usage of the whole cache",
    },
    {
      variable: "KV_USAGE_TRIGGER",
      type: "ignored",
      silent: [],
      reason: "a round fires on the request's own length, not on the usage of the whole cache",
    },
    {
      variable: "KV_USAGE_RELEASE",
      type: "ignored",
      silent: [],
      reason: "a round fires on the request's own length, not on the usage of the whole cache",
    },
    {
      variable: "ENABLE_EXPERIMENTAL_KV_COMPACTION",
      type: "ignored",
      silent: ["true"],
      reason: "every round compacts",
    },
    {
      variable: "ENABLE_EXPERIMENTAL_BLOCK_RECLAIM",
      type: "ignored",
      silent: ["true"],
      reason: "every round gives its blocks back",
    },
    {
      variable: "LOG_DECISIONS",
      type: "ignored",
      silent: ["false"],
      reason: "rounds are reported as events of the control plane",
    },
  ],
} as const satisfies ReferenceEnvironment;
