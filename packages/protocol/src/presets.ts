import type { PolicyInput } from "./policy.ts";

/**
 * Named policies. Settings are those of the cited paper or, where it says nothing,
 * of its published code; budget and interval are the document's defaults.
 */
export const presets = {
  /**
   * triattn's own, and the default. Where calibration learned what foretells later use, that; else half for tokens that
   * nothing later repeats, the rest by expected use, distinctness and recency; without statistics, by the latter two.
   */
  auto: {
    name: "auto",
    terms: [{ kind: "trig" }, { kind: "norm" }, { kind: "keydiff" }, { kind: "recency", weight: 1.5 }],
    reserve: { share: 0.5, terms: [{ kind: "superseded" }] },
    learned: true,
    statistics: "optional",
    normalize: "each",
    groupAggregation: "mean",
    selection: "per_layer_per_head",
  },
  /** TriAttention, arXiv 2604.04921: trig + norm, z-scored per query head, maximum over the group. */
  triattention: {
    name: "triattention",
    terms: [{ kind: "trig" }, { kind: "norm" }],
    normalize: "sum",
    selection: "per_head",
  },
  /** Random Attention, arXiv 2609.03430: the prompt is kept, the rest is evicted uniformly at random per KV head. */
  random: {
    name: "random",
    terms: [{ kind: "random" }],
    normalize: "none",
    selection: "per_layer_per_head",
  },
  /** StreamingLLM, arXiv 2309.17453: attention sinks and the most recent tokens. */
  streaming: {
    name: "streaming",
    terms: [{ kind: "recency" }],
    normalize: "none",
    selection: "union",
    pin: { prompt: false, sinks: 4, window: 0 },
  },
  /** KeyDiff, arXiv 2504.15364: keys unlike the others are kept. */
  keydiff: {
    name: "keydiff",
    terms: [{ kind: "keydiff" }],
    normalize: "none",
    selection: "per_layer_per_head",
  },
  /** KeyDiff + trig + norm, each z-scored: distinct keys and keys that later queries will look for. */
  blend: {
    name: "blend",
    terms: [{ kind: "keydiff" }, { kind: "trig" }, { kind: "norm" }],
    normalize: "each",
    selection: "per_layer_per_head",
  },
  /**
   * Expected Attention, arXiv 2510.00636: attention that the next 512 queries are expected to pay, times |v|. Query
   * statistics are those of calibration, not of the request; covariances count within a frequency band.
   */
  "expected-attention": {
    name: "expected-attention",
    terms: [{ kind: "expected" }, { kind: "vnorm", log: true }],
    normalize: "none",
    selection: "per_layer_per_head",
  },
  /** Short keys are kept (L2 norm, arXiv 2406.11430; kvpress's Knorm). */
  knorm: {
    name: "knorm",
    terms: [{ kind: "knorm", weight: -1 }],
    normalize: "none",
    selection: "per_layer_per_head",
  },
  /**
   * Leverage scores of keys, after Compactor, arXiv 2507.08143: its term for what is unlike the rest, without its blend
   * with attention weights.
   */
  leverage: {
    name: "leverage",
    terms: [{ kind: "leverage" }],
    normalize: "none",
    selection: "per_layer_per_head",
  },
  /**
   * SnapKV, arXiv 2404.14469, at every round rather than once after the prompt: attention of the last 32 queries, the
   * largest among 7 neighbours (the paper's settings on LongBench), mean over the query heads of a KV head as in kvpress.
   */
  snapkv: {
    name: "snapkv",
    terms: [{ kind: "observed", window: 32, reach: 3 }],
    normalize: "none",
    selection: "per_layer_per_head",
    pin: { window: 32 },
  },
  /**
   * H2O, arXiv 2306.14048: half of the places to the most recent tokens, half to those that were paid most attention in
   * all, mean over the query heads of a KV head. Added up from the first round on, and its last 128 queries.
   */
  h2o: {
    name: "h2o",
    terms: [{ kind: "accumulated" }],
    reserve: { share: 0.5, terms: [{ kind: "recency" }] },
    normalize: "each",
    selection: "per_layer_per_head",
    pin: { window: 0 },
  },
  /** R-KV, arXiv 2505.24133: λ = 0.1 of the attention of the last 8 queries, less 0.9 of the redundancy of keys. */
  rkv: {
    name: "rkv",
    terms: [
      { kind: "observed", weight: 0.1, window: 8, reach: 3, group: "max" },
      { kind: "redundancy", weight: 0.9 },
    ],
    normalize: "none",
    selection: "per_layer_per_head",
    pin: { window: 8 },
  },
  /** What a later token repeats goes first: keys compared with their rotation undone. triattn's own. */
  superseded: {
    name: "superseded",
    terms: [{ kind: "superseded" }],
    normalize: "none",
    selection: "per_layer_per_head",
  },
  /**
   * After VaSE, arXiv 2606.03928: values of the largest range are protected, the rest is drawn at random.
   * The protected share is triattn's choice.
   */
  vase: {
    name: "vase",
    terms: [{ kind: "random" }],
    reserve: { share: 0.1, terms: [{ kind: "vrange" }] },
    normalize: "each",
    selection: "per_layer_per_head",
  },
  /**
   * After α, arXiv 2605.14292: TriAttention less half of a redundancy of values. Its greedy pick, one token after
   * another, is replaced by the similarity to later values, which takes one pass.
   */
  "triattention-redundancy": {
    name: "triattention-redundancy",
    terms: [{ kind: "trig" }, { kind: "norm" }, { kind: "superseded", space: "value", weight: 0.5 }],
    normalize: "sum",
    selection: "per_head",
  },
  /** TriAttention V3 of TheTom's llama.cpp: the first 128 tokens and the last 128 stay, eight segments have quotas. */
  segments: {
    name: "segments",
    terms: [{ kind: "trig" }, { kind: "norm" }],
    segments: { count: 8 },
    normalize: "sum",
    selection: "per_head",
    pin: { sinks: 128, window: 128 },
  },
} as const satisfies Record<string, PolicyInput>;

export type PresetName = keyof typeof presets;
