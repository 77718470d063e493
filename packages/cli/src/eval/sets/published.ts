/**
 * Published figures, to stand beside one's own: percent right unless said otherwise. Other engines, samplings and
 * numbers of samples than here; they tell what to expect, and no more.
 */
const TRIATTENTION = "arXiv 2604.04921";
const RANDOM = "arXiv 2609.03430";

const aime = (at: 0 | 1): string[] => {
  const rows = [
    ["Qwen3-8B, budget 2048", [57.1, 40.8], [34.6, 20.0], [25.4, 17.5], [42.1, 32.9]],
    ["DS-Qwen-7B, budget 2048", [43.8, 34.2], undefined, undefined, [42.5, 30.0]],
    ["DS-Llama-8B, budget 512", [50.4, 31.4], undefined, undefined, [33.8, 19.6]],
    ["GPT-OSS-20B, budget 2048", [69.2, 60.0], undefined, undefined, [59.2, 49.2]],
  ] as const;
  return rows.map(([model, full, snapkv, rkv, triattention]) => {
    const others = snapkv === undefined ? "" : `, SnapKV ${snapkv[at]}, R-KV ${rkv[at]}`;
    return `${model}: full ${full[at]}${others}, TriAttention ${triattention[at]} (${TRIATTENTION})`;
  });
};

export const published: Readonly<Record<string, readonly string[]>> = {
  aime24: aime(0),
  aime25: aime(1),
  "math-500": [
    `four models, budget 512: full 69.6, 82.4, 87.0, 91.4; SnapKV 49.2, 65.5, 66.4, 68.2; R-KV 46.4, 76.9, 71.6, 77.4; TriAttention 56.0, 80.6, 79.6, 81.2 (${TRIATTENTION})`,
    `Qwen3-4B, budget 1024: full 93.9, random 87.4, TriAttention 86.4, R-KV 81.0, VaSE 80.9, SnapKV 70.3 (${RANDOM})`,
  ],
  gpqa: [
    `Qwen3-4B, budget 2048: full 56.2, TriAttention 53.3, random 53.0, R-KV 48.2, VaSE 46.1, SnapKV 36.9 (${RANDOM})`,
  ],
  longbench: [`TriAttention at half of the cache: 48.1 on average (${TRIATTENTION})`],
  ruler: [`4k tokens: TriAttention 66.1, SnapKV 55.6 (${TRIATTENTION})`],
};
