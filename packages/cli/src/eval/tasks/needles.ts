import { ConfigError } from "@triattn/control";
import { Random } from "../random.ts";
import type { Item, Task } from "../task.ts";

export interface NeedleOptions {
  readonly name: string;
  /** The text that hides the needle. */
  readonly text: string;
  readonly source: string;
  /** Tokens of text, the needle and the question included. */
  readonly length: number;
  /** Where the needle is stated: parts of the length. */
  readonly depths: readonly number[];
  readonly limit: number;
  readonly seed: number;
}

const ANSWER_TOKENS = 12;

/**
 * Needles at depth × length: a five-digit passcode stated once in real text and asked for at its end. The text is a
 * prompt that is not pinned, prefilled in chunks of one interval with a round after each, as if it were generated.
 */
export function needleTask(options: NeedleOptions): Task {
  const { name, text, source, length, depths, limit, seed } = options;
  const codes = new Map<string, string>();
  return {
    name,
    description: `a passcode stated once in ${source}, asked for after ${length} tokens, at depths ${depths.join(", ")}`,
    profile: "score",
    measures: [{ name: "exact", better: "more" }],
    longest: length + 64 + ANSWER_TOKENS,
    needsFull: false,
    items: async ({ encode }) => {
      const ids = await encode(text);
      const question = await encode(
        "\n\nQuestion: What is the secret passcode?\nAnswer: The secret passcode is",
      );
      const items: Item[] = [];
      for (let index = 0; index < limit; index++) {
        const random = new Random(`${name}/${seed}/${index}`);
        const code = String(random.whole(10_000, 99_999));
        const needle = await encode(` The secret passcode is ${code}. Remember it. `);
        const room = length - needle.length - question.length;
        if (room < 1 || ids.length < room) {
          throw new ConfigError(
            "--text",
            source,
            `holds ${ids.length} tokens, a needle test of ${length} needs ${room}`,
          );
        }
        const from = random.whole(0, ids.length - room);
        const hay = ids.slice(from, from + room);
        const depth = depths[index % depths.length] as number;
        const at = Math.floor(depth * room);
        const prompt = [...hay.slice(0, at), ...needle, ...hay.slice(at), ...question];
        const id = `needle-${index}-at-${depth}`;
        codes.set(id, code);
        items.push({ id, prompt, sizes: { prompt: prompt.length, generated: 0 }, maxTokens: ANSWER_TOKENS });
      }
      return items;
    },
    grade: (item, reply) => ({
      exact: Number(/\d[\d,]*/.exec(reply.text)?.[0].replaceAll(",", "") === codes.get(item.id)),
    }),
  };
}
