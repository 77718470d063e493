/** Repeatable chance (mulberry32): a finding is found again by its seed. */
export class Chance {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** In [0, 1). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  }

  /** A whole number in [0, end). */
  below(end: number): number {
    return Math.floor(this.next() * end);
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)] as T;
  }

  bytes(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => this.below(256));
  }
}

/** Values that programs stumble over. */
const AWKWARD: readonly unknown[] = [
  null,
  true,
  "",
  "x".repeat(300),
  "__proto__",
  "\u0000",
  -1,
  0,
  1,
  1.5,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  2 ** 31,
  2 ** 53,
  2n ** 63n - 1n,
  -(2n ** 63n),
  2n ** 64n - 1n,
  [],
  {},
  [[[[[]]]]],
  new Uint8Array(3),
];

/** A copy of a value of JSON, or of MessagePack, with something changed somewhere in it. */
export function mutate(chance: Chance, value: unknown): unknown {
  const isContainer =
    typeof value === "object" &&
    value !== null &&
    !(value instanceof Uint8Array) &&
    Object.keys(value).length > 0;
  if (!isContainer || chance.next() < 0.1) return chance.pick(AWKWARD);
  if (Array.isArray(value)) {
    const copy = [...value];
    const at = chance.below(copy.length);
    const how = chance.below(4);
    if (how === 0) copy.splice(at, 1);
    else if (how === 1) copy.push(...Array.from({ length: chance.below(70) }, () => copy[at]));
    else copy[at] = mutate(chance, copy[at]);
    return copy;
  }
  const copy = { ...(value as Record<string, unknown>) };
  const key = chance.pick(Object.keys(copy));
  const how = chance.below(5);
  if (how === 0) delete copy[key];
  else if (how === 1) copy[chance.pick(["extra", "__proto__", "constructor", key.toUpperCase()])] = copy[key];
  else copy[key] = mutate(chance, copy[key]);
  return copy;
}
