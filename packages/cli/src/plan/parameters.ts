import type { Config } from "./model.ts";

/** Counts of weights, by how a decode step reads them. */
export interface Parameters {
  readonly total: number;
  /** Looked up, a row a token: the input embedding, where it is not the output's too. */
  readonly lookedUp: number;
  /** Read once a step whatever the batch: attention, dense MLPs, the output embedding. */
  readonly dense: number;
  /** Of all experts, of all layers. */
  readonly experts: number;
  /** Part of all experts that one token goes through. */
  readonly activeShare: number;
  /** Kept in 16 bits when the rest is quantised: embeddings, and with mxfp4 everything but the experts. */
  readonly embeddings: number;
}

export interface Dimensions {
  readonly layers: number;
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly hidden: number;
  readonly vocabulary: number;
}

/** Architectures whose MLP has two matrices, not three. */
const UNGATED = new Set(["phi", "starcoder2", "gpt_neox", "gptj", "codegen", "nemotron", "stablelm_epoch"]);
const TIED = /^(gemma|cohere)/;

const number = (config: Config, ...names: string[]): number => {
  const found = names.map((name) => config[name]).find((value) => typeof value === "number");
  return typeof found === "number" ? found : 0;
};

/** Weights of a decoder-only transformer from its configuration; norms and biases, far below a percent, left out. */
export function parameters(config: Config, dimensions: Dimensions): Parameters {
  const { layers, queryHeads, kvHeads, headDim, hidden, vocabulary } = dimensions;
  const attention = 2 * hidden * queryHeads * headDim + 2 * hidden * kvHeads * headDim;
  const matrices = UNGATED.has(String(config.model_type)) ? 2 : 3;
  const mlp = matrices * hidden * number(config, "intermediate_size");
  const count = number(config, "num_local_experts", "num_experts", "n_routed_experts");
  const active = number(config, "num_experts_per_tok", "num_experts_per_token");
  const width = number(config, "moe_intermediate_size", "intermediate_size");
  const shared =
    number(config, "shared_expert_intermediate_size") || number(config, "n_shared_experts") * width;
  const stride = Math.max(1, number(config, "decoder_sparse_step"));
  const dense = new Set(Array.isArray(config.mlp_only_layers) ? config.mlp_only_layers : []);
  const first = number(config, "first_k_dense_replace");
  const sparse =
    count === 0
      ? 0
      : Array.from({ length: layers }, (_, i) => i).filter(
          (i) => i >= first && !dense.has(i) && (i + 1) % stride === 0,
        ).length;
  const experts = sparse * count * 3 * hidden * width;
  const tied =
    typeof config.tie_word_embeddings === "boolean"
      ? config.tie_word_embeddings
      : TIED.test(String(config.model_type));
  const embedding = vocabulary * hidden;
  const always =
    layers * attention +
    (layers - sparse) * mlp +
    sparse * (hidden * count + 3 * hidden * shared) +
    embedding;
  const lookedUp = tied ? 0 : embedding;
  return {
    total: always + experts + lookedUp,
    lookedUp,
    dense: always,
    experts,
    activeShare: count === 0 ? 1 : active / count,
    embeddings: embedding + lookedUp,
  };
}
