import { ConfigError } from "@triattn/control";
import type { Item, PositionLogprobs, Reply, Task } from "../task.ts";

const TOP = 20;

/** The most likely token of a position; ties go to the smaller id. */
function likeliest(position: PositionLogprobs): string {
  const [best] = Object.entries(position).sort(
    ([a, x], [b, y]) => y.logprob - x.logprob || Number(a) - Number(b),
  );
  return best?.[0] ?? "";
}

/**
 * KL divergence of `to` from `of` in nats, over the tokens that both list and one class for all others: by data
 * processing at most the whole vocabulary's.
 */
export function coarseKl(of: PositionLogprobs, to: PositionLogprobs): number {
  let kl = 0;
  let [restOf, restTo] = [1, 1];
  for (const [token, { logprob }] of Object.entries(of)) {
    const other = to[token];
    if (other === undefined) continue;
    const p = Math.exp(logprob);
    kl += p * (logprob - other.logprob);
    restOf -= p;
    restTo -= Math.exp(other.logprob);
  }
  // Rounding may leave a little less than nothing.
  const [p, q] = [Math.max(restOf, 1e-9), Math.max(restTo, 1e-9)];
  return Math.max(0, kl + p * Math.log(p / q));
}

export interface FidelityOptions {
  /** Texts to cut pieces from, one piece after another. */
  readonly text: string;
  readonly source: string;
  /** Tokens of a piece. */
  readonly length: number;
  readonly limit: number;
  /** First position that counts: the same in every arm, and compressed in all of them. */
  readonly from: number;
}

/**
 * Teacher-forced fidelity to full KV, and perplexity: a text is prefilled in chunks of one interval, with the rounds
 * that would fire had it been generated, and the log-probabilities of its tokens are compared, position by position.
 */
export function fidelityTask(options: FidelityOptions): Task {
  const { text, source, length, limit, from } = options;
  return {
    name: "fidelity",
    description: `teacher-forced fidelity to full KV on ${source}: ${limit} texts of ${length} tokens, positions from ${from}`,
    profile: "score",
    measures: [
      { name: "agreement", better: "more" },
      { name: "kl", better: "less" },
      { name: "nll", better: "less" },
      { name: "firstDivergence", better: "more" },
    ],
    longest: length + 1,
    needsFull: true,
    items: async ({ encode }) => {
      const ids = await encode(text);
      if (ids.length < limit * length) {
        throw new ConfigError(
          "--text",
          source,
          `holds ${ids.length} tokens, ${limit} texts of ${length} need ${limit * length}: name a longer text, or use a smaller --limit or --text-length`,
        );
      }
      return Array.from({ length: limit }, (_, i): Item => {
        const prompt = ids.slice(i * length, (i + 1) * length);
        return {
          id: `text-${i}`,
          prompt,
          sizes: { prompt: length, generated: 0 },
          maxTokens: 1,
          promptLogprobs: TOP,
        };
      });
    },
    grade: (item, reply, full) => {
      const [own, whole] = [positions(reply), positions(full)];
      let [agreed, kl, nll, count] = [0, 0, 0, 0];
      let first = item.prompt.length;
      for (let at = from; at < item.prompt.length; at++) {
        const [here, there] = [own[at] as PositionLogprobs, whole[at] as PositionLogprobs];
        const same = likeliest(here) === likeliest(there);
        if (!same && first > at) first = at;
        agreed += Number(same);
        kl += coarseKl(there, here);
        nll -= here[String(item.prompt[at])]?.logprob ?? Number.NEGATIVE_INFINITY;
        count += 1;
      }
      return {
        agreement: agreed / count,
        kl: kl / count,
        nll: nll / count,
        // Positions from the first counted one to the first whose likeliest token differs.
        firstDivergence: first - from,
      };
    },
  };
}

function positions(reply: Reply | undefined): readonly (PositionLogprobs | null)[] {
  if (reply?.promptLogprobs == null) throw new Error("the engine gave no log-probabilities of the prompt");
  return reply.promptLogprobs;
}
