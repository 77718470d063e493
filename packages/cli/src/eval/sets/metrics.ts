/** Metrics of LongBench (arXiv 2308.14508) and RULER (arXiv 2404.06654), each from 0 to 1. */

const PUNCTUATION = new Set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~");

const words = (text: string) => text.split(/\s+/).filter((word) => word !== "");

/** Lower case, without punctuation and articles. */
function plain(text: string): string[] {
  const kept = [...text.toLowerCase()].filter((character) => !PUNCTUATION.has(character)).join("");
  return words(kept.replaceAll(/\b(?:a|an|the)\b/g, " "));
}

/** F1 of the words that both have, as often as both have them. */
export function qaF1(prediction: string, truth: string): number {
  const [given, wanted] = [plain(prediction), plain(truth)];
  const left = new Map<string, number>();
  for (const word of wanted) left.set(word, (left.get(word) ?? 0) + 1);
  let same = 0;
  for (const word of given) {
    const count = left.get(word) ?? 0;
    if (count > 0) same += 1;
    left.set(word, count - 1);
  }
  if (same === 0) return 0;
  const [precision, recall] = [same / given.length, same / wanted.length];
  return (2 * precision * recall) / (precision + recall);
}

/** The words of one longest common subsequence. */
function common(a: readonly string[], b: readonly string[]): string[] {
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
  for (let i = 1; i <= a.length; i++) {
    for (let j = 1; j <= b.length; j++) {
      const [row, above] = [lengths[i] as Uint32Array, lengths[i - 1] as Uint32Array];
      row[j] =
        a[i - 1] === b[j - 1]
          ? (above[j - 1] as number) + 1
          : Math.max(above[j] as number, row[j - 1] as number);
    }
  }
  const found: string[] = [];
  for (let i = a.length, j = b.length; i > 0 && j > 0; ) {
    const [row, above] = [lengths[i] as Uint32Array, lengths[i - 1] as Uint32Array];
    if (a[i - 1] === b[j - 1]) {
      found.push(a[i - 1] as string);
      i -= 1;
      j -= 1;
    } else if ((above[j] as number) > (row[j - 1] as number)) i -= 1;
    else j -= 1;
  }
  return found;
}

/** ROUGE-L of whole texts, as the Python package `rouge` counts it: sentences end with a dot, words count once. */
export function rougeL(prediction: string, truth: string): number {
  const sentences = (text: string) =>
    text
      .split(".")
      .map((part) => words(part))
      .filter((part) => part.length > 0);
  const [given, wanted] = [sentences(prediction), sentences(truth)];
  if (given.length === 0 || wanted.length === 0) return 0;
  const union = new Set<string>();
  for (const sentence of wanted) {
    for (const other of given) for (const word of common(sentence, other)) union.add(word);
  }
  const recall = union.size / new Set(wanted.flat()).size;
  const precision = union.size / new Set(given.flat()).size;
  return (2 * precision * recall) / (precision + recall + 1e-8);
}

/** Part of the classes named in a reply that is the right one. */
export function classification(prediction: string, truth: string, classes: readonly string[]): number {
  const named = classes.filter((name) => prediction.includes(name));
  // As published: the list shrinks while it is gone through, so that the class after one taken out is passed over.
  for (let i = 0; i < named.length; i++) {
    const name = named[i] as string;
    if (truth.includes(name) && name !== truth) named.splice(named.indexOf(name), 1);
  }
  return named.includes(truth) ? 1 / named.length : 0;
}

/** Part of the numbers in a reply that is the right one. */
export function numbers(prediction: string, truth: string): number {
  const found = prediction.match(/\d+/g) ?? [];
  return found.length === 0 ? 0 : found.filter((number) => number === truth).length / found.length;
}

/** Paragraph numbers: the truth says `Paragraph N`. */
export function retrieval(prediction: string, truth: string): number {
  return numbers(prediction, /Paragraph (\d+)/.exec(truth)?.[1] ?? "");
}

/** Ratcliff and Obershelp: twice the characters in matching blocks over all, as Python's difflib counts. */
export function similarity(a: string, b: string): number {
  const [left, right] = [[...a], [...b]];
  if (left.length + right.length === 0) return 1;
  const places = new Map<string, number[]>();
  for (const [j, character] of right.entries()) {
    const list = places.get(character);
    if (list === undefined) places.set(character, [j]);
    else list.push(j);
  }
  // What is everywhere in a long text says nothing.
  if (right.length >= 200) {
    for (const [character, list] of places) {
      if (list.length > Math.floor(right.length / 100) + 1) places.delete(character);
    }
  }
  const matches = (aFrom: number, aTo: number, bFrom: number, bTo: number): number => {
    let [bestI, bestJ, size] = [aFrom, bFrom, 0];
    let before = new Map<number, number>();
    for (let i = aFrom; i < aTo; i++) {
      const now = new Map<number, number>();
      for (const j of places.get(left[i] as string) ?? []) {
        if (j < bFrom) continue;
        if (j >= bTo) break;
        const length = (before.get(j - 1) ?? 0) + 1;
        now.set(j, length);
        if (length > size) [bestI, bestJ, size] = [i - length + 1, j - length + 1, length];
      }
      before = now;
    }
    // Characters passed over above still count where they touch a block.
    while (bestI > aFrom && bestJ > bFrom && left[bestI - 1] === right[bestJ - 1]) {
      bestI -= 1;
      bestJ -= 1;
      size += 1;
    }
    while (bestI + size < aTo && bestJ + size < bTo && left[bestI + size] === right[bestJ + size]) size += 1;
    if (size === 0) return 0;
    return matches(aFrom, bestI, bFrom, bestJ) + size + matches(bestI + size, aTo, bestJ + size, bTo);
  };
  return (2 * matches(0, left.length, 0, right.length)) / (left.length + right.length);
}

/** Similarity of the first line of a reply that is code, in hundredths. */
export function codeSimilarity(prediction: string, truth: string): number {
  const lines = prediction.replace(/^\n+/, "").split("\n");
  const line = lines.find((text) => !text.includes("`") && !text.includes("#") && !text.includes("//")) ?? "";
  if (line === "" || truth === "") return 0;
  return Math.round(100 * similarity(line, truth)) / 100;
}

/** RULER: part of the references that a reply holds; for questions (`qa`), whether it holds any. */
export function ruler(task: string, prediction: string, references: readonly string[]): number {
  const text = [...prediction.trim()]
    .map((c) => (c < " " ? "\n" : c))
    .join("")
    .trim()
    .toLowerCase();
  const held = references.filter((reference) => text.includes(reference.toLowerCase())).length;
  return task.startsWith("qa") ? Math.min(1, held) : held / references.length;
}
