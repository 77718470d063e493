/** Token 0 fills batches, token 1 ends a trace; every other token is one character. */
export const PAD = 0;
export const EOS = 1;
const SPECIAL = ["<pad>", "<eos>"] as const;

const CHARACTERS = `\n${[..."0123456789"].join("")}ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz@#*?=:|+-<.`;

/** Tokens in the order of their ids. */
export const vocabulary: readonly string[] = [...SPECIAL, ...CHARACTERS];

const ids = new Map(vocabulary.map((token, id) => [token, id]));

/** Token ids of a text. Throws RangeError for a character that is not in the vocabulary. */
export function encode(text: string): number[] {
  return Array.from(text, (character) => {
    const id = ids.get(character);
    if (id === undefined) throw new RangeError(`not in the vocabulary: ${JSON.stringify(character)}`);
    return id;
  });
}

/** The text of token ids, up to the end of the trace. */
export function decode(tokens: readonly number[]): string {
  const end = tokens.indexOf(EOS);
  const shown = end < 0 ? tokens : tokens.slice(0, end);
  return shown.map((id) => vocabulary[id] ?? "<unknown>").join("");
}

/** The tokenizer as a Hugging Face `tokenizer.json`: one token a character. */
export function tokenizerJson(): Record<string, unknown> {
  const special = SPECIAL.map((content, id) => ({
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }));
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: special,
    normalizer: null,
    pre_tokenizer: { type: "Split", pattern: { Regex: "[\\s\\S]" }, behavior: "Isolated", invert: false },
    post_processor: null,
    decoder: { type: "Fuse" },
    model: {
      type: "WordLevel",
      vocab: Object.fromEntries(vocabulary.map((token, id) => [token, id])),
      unk_token: "<pad>",
    },
  };
}
