/**
 * Published figures, to stand beside one's own: percent right unless said otherwise. Other engines, samplings and
 * numbers of samples than here; they tell what to expect, and no more.
 */
const TRIATTENTION = "arXiv 2604.04921";
const RANDOM = "arXiv 2609.03430";

/** The reference implementation's own runner. */
const SAMPLING = "its settings: temperature 0.6, top-p 0.95";

const MODELS = ["Qwen3-8B", "DS-Llama-8B", "DS-Qwen-7B", "GPT-OSS-20B"] as const;
const METHODS = ["full", "SnapKV", "R-KV", "TriAttention"] as const;

type Rows = readonly (readonly number[])[];

/** One line a model: its figures by method. */
const lines = (rows: Rows, budget: (model: string) => number): string[] =>
  MODELS.map((model, column) => {
    const figures = METHODS.map((method, row) => `${method} ${rows[row]?.[column]?.toFixed(1)}`);
    return `${model}, budget ${budget(model)}: ${figures.join(", ")} (${TRIATTENTION})`;
  });

const aime = (rows: Rows): string[] => [
  ...lines(rows, (model) => (model === "DS-Llama-8B" ? 512 : 2048)),
  `${SAMPLING}, 8 samples, 32,768 tokens`,
];

export const published: Readonly<Record<string, readonly string[]>> = {
  aime24: aime([
    [57.1, 50.4, 43.8, 69.2],
    [34.6, 5.0, 34.6, 48.3],
    [25.4, 25.8, 34.6, 49.6],
    [42.1, 33.8, 42.5, 59.2],
  ]),
  aime25: aime([
    [40.8, 31.4, 34.2, 60.0],
    [20.0, 6.7, 25.0, 36.7],
    [17.5, 11.2, 23.3, 39.2],
    [32.9, 19.6, 30.0, 49.2],
  ]),
  "math-500": [
    ...lines(
      [
        [69.6, 82.4, 87.0, 91.4],
        [49.2, 65.5, 66.4, 68.2],
        [46.4, 76.9, 71.6, 77.4],
        [56.0, 80.6, 79.6, 81.2],
      ],
      () => 512,
    ),
    `${SAMPLING}, 1 sample, 8,192 tokens`,
    `Qwen3-4B, budget 1024: full 93.9, random 87.4, TriAttention 86.4, R-KV 81.0, VaSE 80.9, SnapKV 70.3 (${RANDOM})`,
  ],
  gpqa: [
    `Qwen3-4B, budget 2048: full 56.2, TriAttention 53.3, random 53.0, R-KV 48.2, VaSE 46.1, SnapKV 36.9 (${RANDOM})`,
  ],
  longbench: [`TriAttention at half of the cache: 48.1 on average (${TRIATTENTION})`],
  ruler: [`4k tokens: TriAttention 66.1, SnapKV 55.6 (${TRIATTENTION})`],
};
