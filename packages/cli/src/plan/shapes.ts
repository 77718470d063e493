import type { Config } from "./model.ts";

const qwen3 = (
  hidden: number,
  layers: number,
  heads: number,
  intermediate: number,
  tied: boolean,
): Config => ({
  model_type: "qwen3",
  hidden_size: hidden,
  intermediate_size: intermediate,
  num_hidden_layers: layers,
  num_attention_heads: heads,
  num_key_value_heads: 8,
  head_dim: 128,
  vocab_size: 151936,
  max_position_embeddings: 40960,
  tie_word_embeddings: tied,
  torch_dtype: "bfloat16",
});

/** Shapes that can be named without a configuration on this machine, beside those that statistics ship for. */
export const shapes: Readonly<Record<string, Config>> = {
  "Qwen/Qwen3-4B": qwen3(2560, 36, 32, 9728, true),
  "Qwen/Qwen3-14B": qwen3(5120, 40, 40, 17408, false),
  "Qwen/Qwen3-32B": qwen3(5120, 64, 64, 25600, false),
};
