import { ConfigError } from "./errors.ts";

/** What a request says of itself. */
export interface RequestOverrides {
  /** Its own KV budget in tokens; 0 never compresses it. It comes before any rule. */
  readonly budget?: number;
  /** Tags that rules match. */
  readonly tags?: readonly string[];
}

/** Options as they travel. */
export interface TriattnOptions {
  readonly triattn_budget?: number;
  /** Tags with commas between them. */
  readonly triattn_tags?: string;
}

const LARGEST_BUDGET = 16_777_216;
const MOST_TAGS = 16;
const TAG = /^(?! )(?:[^,\p{C}\p{Z}]| ){1,64}(?<! )$/u;

/**
 * Options of one request of the OpenAI API, in the field that the engine reads: spread them into the body.
 *
 * ```ts
 * const params = { model, messages, ...requestOptions({ budget: 512, tags: ["batch"], engine: "vllm" }) };
 * await client.chat.completions.create(params);
 * ```
 *
 * Throws ConfigError for a budget or a tag that the engine would refuse.
 */
export function requestOptions(options: RequestOverrides & { readonly engine?: "vllm" }): {
  vllm_xargs: TriattnOptions;
};
export function requestOptions(options: RequestOverrides & { readonly engine: "sglang" }): {
  custom_params: TriattnOptions;
};
export function requestOptions(
  options: RequestOverrides & { readonly engine?: "vllm" | "sglang" },
): { vllm_xargs: TriattnOptions } | { custom_params: TriattnOptions };
export function requestOptions({
  budget,
  tags = [],
  engine = "vllm",
}: RequestOverrides & { readonly engine?: "vllm" | "sglang" }) {
  if (budget !== undefined && (!Number.isInteger(budget) || budget < 0 || budget > LARGEST_BUDGET)) {
    throw new ConfigError(
      "budget",
      budget,
      `a whole number of tokens from 0 (never compress) to ${LARGEST_BUDGET}`,
    );
  }
  for (const tag of tags) checkTag("tags", tag);
  if (tags.length > MOST_TAGS) throw new ConfigError("tags", `${tags.length} tags`, `at most ${MOST_TAGS}`);
  const given: TriattnOptions = {
    ...(budget === undefined ? {} : { triattn_budget: budget }),
    ...(tags.length === 0 ? {} : { triattn_tags: tags.join(",") }),
  };
  return engine === "vllm" ? { vllm_xargs: given } : { custom_params: given };
}

/** Throws ConfigError for a tag that no request could carry. */
export function checkTag(field: string, tag: string): void {
  if (TAG.test(tag)) return;
  throw new ConfigError(field, tag, "1 to 64 printable characters, no commas, no spaces at the ends");
}
