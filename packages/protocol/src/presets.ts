import type { PolicyInput } from "./policy.ts";

/**
 * Named policies. Settings are those of the cited paper or, where it says nothing,
 * of its published code; budget and interval are the document's defaults.
 */
export const presets = {
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
} as const satisfies Record<string, PolicyInput>;

export type PresetName = keyof typeof presets;
