import { z } from "zod";

/**
 * A score term. Each yields one float32 per resident token, higher meaning "keep";
 * terms at query-head level (`trig`, `norm`) are aggregated over the GQA group later.
 */
const weight = z.number().min(-1e6).max(1e6).default(1).describe("Factor of this term in the sum.");

export const TrigTerm = z
  .strictObject({
    kind: z.literal("trig"),
    weight,
    offsets: z.enum(["mean", "max"]).default("mean").describe("Aggregation over the future offsets."),
    maxOffset: z
      .int()
      .min(1)
      .max(2 ** 20)
      .default(65536)
      .describe("Offsets are the powers of two from 1 up to this, in tokens."),
  })
  .meta({
    id: "TrigTerm",
    description: "Expected future attention from pre-rotary query centres (arXiv 2604.04921).",
  });

export const NormTerm = z
  .strictObject({
    kind: z.literal("norm"),
    weight,
    residual: z
      .boolean()
      .default(true)
      .describe(
        "True: (E|q| - |E q|) per band, as in the paper. False: E|q|, the ablation without that weighting.",
      ),
  })
  .meta({
    id: "NormTerm",
    description: "Key magnitude weighted by the spread of the queries (arXiv 2604.04921).",
  });

export const KeyDiffTerm = z.strictObject({ kind: z.literal("keydiff"), weight }).meta({
  id: "KeyDiffTerm",
  description: "Negative cosine of a key to the mean of the unit keys (arXiv 2504.15364).",
});

export const RandomTerm = z.strictObject({ kind: z.literal("random"), weight }).meta({
  id: "RandomTerm",
  description: "Uniform noise in [0, 1), drawn anew each round from the policy's seed.",
});

export const RecencyTerm = z
  .strictObject({ kind: z.literal("recency"), weight })
  .meta({ id: "RecencyTerm", description: "The token's logical position." });

export const KeyNormTerm = z.strictObject({ kind: z.literal("knorm"), weight }).meta({
  id: "KeyNormTerm",
  description:
    "Length of the key. A negative weight keeps short keys (arXiv 2406.11430); which sign helps depends on the model.",
});

export const ValueNormTerm = z
  .strictObject({
    kind: z.literal("vnorm"),
    weight,
    log: z.boolean().default(false).describe("True: the logarithm of the length, a factor on a softmax."),
  })
  .meta({ id: "ValueNormTerm", description: "Length of the value." });

export const ValueRangeTerm = z.strictObject({ kind: z.literal("vrange"), weight }).meta({
  id: "ValueRangeTerm",
  description:
    "Largest less smallest element of the value: few values are abnormally large (arXiv 2606.03928).",
});

export const SupersededTerm = z
  .strictObject({
    kind: z.literal("superseded"),
    weight,
    space: z
      .enum(["key", "value"])
      .default("key")
      .describe("What is compared: keys with their rotation undone, or values."),
  })
  .meta({
    id: "SupersededTerm",
    description:
      "Negative of the largest cosine to a later resident token: what a later token repeats is replaceable, " +
      "the newest of its kind and what is unique stay.",
  });

export const ExpectedTerm = z
  .strictObject({
    kind: z.literal("expected"),
    weight,
    horizon: z
      .int()
      .min(1)
      .max(65536)
      .default(512)
      .describe("Next positions over which the rotation of the queries is averaged, in tokens."),
  })
  .meta({
    id: "ExpectedTerm",
    description:
      "Logarithm of the attention that normally distributed queries are expected to pay, averaged over the GQA group " +
      "(arXiv 2510.00636); covariances within a frequency band count, those between bands do not. Needs statistics " +
      "with covariances. The paper's factor |v| is the term vnorm with log, of the same weight.",
  });

export const LeverageTerm = z.strictObject({ kind: z.literal("leverage"), weight }).meta({
  id: "LeverageTerm",
  description:
    "Statistical leverage of the key, its rotation undone and the mean taken off, among all resident keys, after a " +
    "Gaussian sketch of 48 dimensions from the policy's seed (arXiv 2507.08143): what no others stand in for is kept.",
});

export const ProbeTerm = z.strictObject({ kind: z.literal("probe"), weight }).meta({
  id: "ProbeTerm",
  description:
    "A small network for each layer and KV head, of the key with its rotation undone, the token's age and its largest " +
    "cosine to a later key: what calibration found to foretell how much later queries miss a token (as KVzap does from " +
    "hidden states, arXiv 2601.07891). Needs statistics with a probe.",
});

export const ObservedTerm = z
  .strictObject({
    kind: z.literal("observed"),
    weight,
    window: z
      .int()
      .min(1)
      .max(64)
      .default(32)
      .describe("Queries that are observed: those of the most recent tokens, or as many as there are."),
    reach: z
      .int()
      .min(0)
      .max(32)
      .default(3)
      .describe("A token gets the largest attention of those at most so many positions away; 3: of seven."),
    group: z
      .enum(["mean", "max"])
      .default("mean")
      .describe(
        "mean: of each query head's softmax over all resident tokens (SnapKV). max: softmax of the group's largest " +
          "logits, over the tokens before the window (R-KV).",
      ),
  })
  .meta({
    id: "ObservedTerm",
    description:
      "Attention that the most recent queries pay (arXiv 2404.14469). The engine keeps those queries: memory for " +
      "every request that may run, set aside at start-up.",
  });

export const AccumulatedTerm = z
  .strictObject({
    kind: z.literal("accumulated"),
    weight,
    window: z
      .int()
      .min(1)
      .max(1024)
      .default(128)
      .describe(
        "Most queries that a round adds, the most recent ones: at least the interval, or some would be left out. " +
          "Budget + interval: at the first round, too, no query of a generated token is.",
      ),
  })
  .meta({
    id: "AccumulatedTerm",
    description:
      "All attention that queries have paid, added up from round to round (arXiv 2306.14048). The engine keeps the " +
      "queries since the round before: memory for every request that may run, set aside at start-up.",
  });

export const RedundancyTerm = z.strictObject({ kind: z.literal("redundancy"), weight }).meta({
  id: "RedundancyTerm",
  description:
    "Negative softmax of a key's mean cosine to all others; of tokens alike by more than 0.5 the latest is spared " +
    "(arXiv 2505.24133).",
});

export const GumbelTerm = z.strictObject({ kind: z.literal("gumbel"), weight }).meta({
  id: "GumbelTerm",
  description:
    "Gumbel noise from the policy's seed: added to other terms, tokens are drawn without replacement with " +
    "probabilities softmax(the other terms / weight).",
});

export const ScoreTerm = z
  .discriminatedUnion("kind", [
    TrigTerm,
    NormTerm,
    KeyDiffTerm,
    RandomTerm,
    RecencyTerm,
    KeyNormTerm,
    ValueNormTerm,
    ValueRangeTerm,
    SupersededTerm,
    ExpectedTerm,
    LeverageTerm,
    ProbeTerm,
    ObservedTerm,
    AccumulatedTerm,
    RedundancyTerm,
    GumbelTerm,
  ])
  .meta({ id: "ScoreTerm" });

/** Whether a term scores with statistics of the model's queries. */
export function readsStatistics({ kind }: { readonly kind: string }): boolean {
  return kind === "trig" || kind === "norm" || readsCovariance({ kind }) || readsProbe({ kind });
}

/** Whether a term scores with covariances of the model's queries, which statistics before format 3 do not have. */
export function readsCovariance({ kind }: { readonly kind: string }): boolean {
  return kind === "expected";
}

/** Whether a term scores with what calibration learned of keys, which statistics before format 5 do not have. */
export function readsProbe({ kind }: { readonly kind: string }): boolean {
  return kind === "probe";
}

/** Whether a term looks at recent queries of a request. */
export function observes(term: ScoreTerm): term is Extract<ScoreTerm, { kind: "observed" | "accumulated" }> {
  return term.kind === "observed" || term.kind === "accumulated";
}

/** What has terms, as a policy has them. Not PolicyDocument, whose own checks ask for all of them. */
interface Terms {
  readonly terms: readonly ScoreTerm[];
  readonly reserve: { readonly terms: readonly ScoreTerm[] } | null;
}

/** A policy's own terms, then the reserve's. */
export function allTerms({ terms, reserve }: Terms): ScoreTerm[] {
  return [...terms, ...(reserve?.terms ?? [])];
}

/** Most recent queries of a request that a policy looks at; an engine must keep as many. */
export function queriesObserved(policy: Terms): number {
  return Math.max(0, ...allTerms(policy).map((term) => (observes(term) ? term.window : 0)));
}

const share = z.number().min(0).max(1);

export const Reserve = z
  .strictObject({
    share: share.describe("Part of the places that pinned tokens leave free, rounded down to whole tokens."),
    terms: z.array(ScoreTerm).min(1).max(16),
  })
  .meta({
    id: "Reserve",
    description:
      "A part of the budget that other terms choose, before the policy's own choose the rest. " +
      "Needs normalize each.",
  });

export const Segments = z
  .strictObject({
    count: z
      .int()
      .min(1)
      .max(64)
      .describe("Segments of equal length that the evictable positions are cut into."),
    share: share
      .default(1)
      .describe(
        "Part of the free places that is divided evenly among the segments; the rest goes to the best.",
      ),
  })
  .meta({
    id: "Segments",
    description: "Quotas by age: each segment of the sequence keeps its best tokens before the rest compete.",
  });

export const Pin = z
  .strictObject({
    prompt: z
      .boolean()
      .default(true)
      .describe("Never evict prompt tokens. A prompt too long for the budget competes like any other token."),
    sinks: z.int().min(0).max(65536).default(4).describe("First tokens of a request that are never evicted."),
    window: z
      .int()
      .min(0)
      .max(1048576)
      .default(128)
      .describe("Most recent tokens that a round never evicts."),
  })
  .meta({ id: "Pin", description: "Tokens that no round evicts." });

export const PolicyDocument = z
  .strictObject({
    schema: z.literal(1).default(1).describe("Version of this document's form."),
    name: z.string().regex(/^[a-z0-9][a-z0-9._-]{0,63}$/),
    budget: z
      .int()
      .min(0)
      .max(16777216)
      .default(2048)
      .describe("KV budget: resident tokens of a request after a round. 0: never compress."),
    interval: z
      .int()
      .min(1)
      .max(1048576)
      .default(128)
      .describe("A round fires once a request has budget + interval resident tokens."),
    terms: z.array(ScoreTerm).min(1).max(16),
    reserve: Reserve.nullable().default(null),
    segments: Segments.nullable().default(null),
    learned: z
      .boolean()
      .default(false)
      .describe(
        "True: where the statistics have learned weights, those of each layer and KV head replace the terms, and " +
          "the learned share that of the reserve. Needs normalize each.",
      ),
    statistics: z
      .enum(["required", "optional"])
      .default("required")
      .describe("Optional: without statistics of the model, the terms that need them are left out."),
    normalize: z
      .enum(["none", "sum", "each"])
      .default("sum")
      .describe(
        "z-score over the evictable tokens, per query head: of the weighted sum, of each term, or not at all.",
      ),
    groupAggregation: z.enum(["max", "mean"]).default("max").describe("From query heads to their KV head."),
    layerAggregation: z
      .enum(["mean", "max"])
      .default("mean")
      .describe("From layers to one score per KV head; used by selection per_head."),
    selection: z
      .enum(["per_layer_per_head", "per_head", "union"])
      .default("per_head")
      .describe("Who chooses: every layer and KV head; every KV head for all layers; one choice for all."),
    pin: Pin.prefault({}),
    countPrompt: z
      .boolean()
      .default(true)
      .describe("True: the budget covers the prompt. False: the budget covers generated tokens only."),
    seed: z
      .int()
      .min(0)
      .max(4294967295)
      .default(0)
      .describe("Seed of the random and gumbel terms, and of leverage's sketch."),
  })
  .refine(({ reserve, learned, normalize }) => (reserve === null && !learned) || normalize === "each", {
    path: ["normalize"],
    error: "must be each where a reserve is given or weights are learned: scores need one unit",
  })
  .refine(
    (policy) => policy.statistics === "required" || allTerms(policy).some((term) => !readsStatistics(term)),
    { path: ["statistics"], error: "must be required where every term needs them" },
  )
  .refine(
    (policy) =>
      allTerms(policy).every((term) => term.kind !== "accumulated" || term.window >= policy.interval),
    {
      path: ["interval"],
      error: "must not exceed the window of the term accumulated: queries between rounds would be left out",
    },
  )
  .meta({ id: "PolicyDocument", description: "How the KV cache of each request is kept inside its budget." });

export type ScoreTerm = z.infer<typeof ScoreTerm>;
export type PolicyDocument = z.infer<typeof PolicyDocument>;
/** A policy as a user writes it: what is left out gets its default. */
export type PolicyInput = DeepReadonly<z.input<typeof PolicyDocument>>;

type DeepReadonly<T> = T extends object ? { readonly [K in keyof T]: DeepReadonly<T[K]> } : T;
