export type TokenKind = "key" | "string" | "number" | "word" | "mark" | "space" | "wrong";

export interface Token {
  readonly kind: TokenKind;
  readonly text: string;
}

const PATTERN =
  /(?<string>"(?:[^"\\\n]|\\.)*")|(?<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?<word>\b(?:true|false|null)\b)|(?<mark>[{}[\],:])|(?<space>\s+)|(?<wrong>[^\s"{}[\],:]+|")/g;

/** The pieces of JSON text, for colours; they join to the same text. Text that is no JSON is taken as it comes. */
export function tokens(text: string): Token[] {
  return [...text.matchAll(PATTERN)].map((match) => {
    const kinds = Object.entries(match.groups ?? {});
    const kind = (kinds.find(([, value]) => value !== undefined)?.[0] ?? "wrong") as TokenKind;
    const isKey = kind === "string" && /^\s*:/.test(text.slice(match.index + match[0].length));
    return { kind: isKey ? "key" : kind, text: match[0] };
  });
}

export type Parsed = { readonly value: unknown } | { readonly message: string; readonly line: number };

/** Parses JSON; what is wrong with it, and in which line, counted from 1. */
export function parseJson(text: string): Parsed {
  try {
    return { value: JSON.parse(text) };
  } catch (error) {
    const { message } = error as Error;
    const place = failure(text);
    const plain = message
      .replace(/ in JSON at position.*$/s, "")
      .replace(/, ?"?\.{3}.*$/s, "")
      .replace(/, "[\s\S]*" is not valid JSON$/, "");
    return { message: plain, line: lineOf(text, place) };
  }
}

const lineOf = (text: string, at: number): number => text.slice(0, at).split("\n").length;

/** Where parsing fails: engines word it differently, so the longest start that can still become JSON is sought. */
function failure(text: string): number {
  let at = 0;
  const stack: string[] = [];
  let expects: "value" | "key" | "colon" | "comma" = "value";
  for (const { kind, text: piece } of tokens(text)) {
    if (kind === "space") {
      at += piece.length;
      continue;
    }
    const closes = piece === "}" || piece === "]";
    const isText = kind === "string" || kind === "key";
    const scalar = isText || kind === "number" || kind === "word";
    if (expects === "value" && (piece === "{" || piece === "[")) {
      stack.push(piece);
      expects = piece === "{" ? "key" : "value";
    } else if (closes && stack.at(-1) === (piece === "}" ? "{" : "[") && expects !== "colon") {
      stack.pop();
      expects = "comma";
    } else if (expects === "value" && scalar) expects = "comma";
    else if (expects === "key" && isText) expects = "colon";
    else if (expects === "colon" && piece === ":") expects = "value";
    else if (expects === "comma" && piece === "," && stack.length > 0) {
      expects = stack.at(-1) === "{" ? "key" : "value";
    } else return at;
    at += piece.length;
  }
  return at;
}

/** The line, counted from 1, of a dotted path (`pin.window`, `terms.0.kind`) in JSON text; undefined: not there. */
export function lineOfPath(text: string, path: string): number | undefined {
  const stack: { key: string; index: number; list: boolean }[] = [];
  let line = 1;
  let found: number | undefined;
  const here = () => stack.map(({ key, index, list }) => (list ? String(index) : key)).join(".");
  for (const { kind, text: piece } of tokens(text)) {
    const top = stack.at(-1);
    if (kind === "key" && top !== undefined) top.key = piece.slice(1, -1);
    if (piece === "," && top?.list) top.index += 1;
    if (kind !== "space" && piece !== "," && stack.length > 0 && found === undefined && here() === path) {
      found = line;
    }
    if (piece === "{" || piece === "[") stack.push({ key: "", index: 0, list: piece === "[" });
    if (piece === "}" || piece === "]") stack.pop();
    line += piece.split("\n").length - 1;
  }
  return found;
}
