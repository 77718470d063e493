import { readFileSync } from "node:fs";

const root = new URL("../../../test/vectors/", import.meta.url);

/** Vectors that the Python tests read, too. */
export function loadVectors<T>(name: string): T[] {
  return JSON.parse(readFileSync(new URL(`${name}.json`, root), "utf8")) as T[];
}

/** JSON has neither 64-bit integers nor bytes: `{"$int": digits}` and `{"$bytes": hex}`. */
export function untag(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(untag);
  if (typeof value !== "object" || value === null) return value;
  const { $int, $bytes } = value as { $int?: string; $bytes?: string };
  if ($int !== undefined) return BigInt($int);
  if ($bytes !== undefined) return Uint8Array.from(Buffer.from($bytes, "hex"));
  return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, untag(entry)]));
}

export const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
export const unhex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text, "hex"));
