import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { decode, encode } from "../src/index.ts";
import { hex, loadVectors, unhex, untag } from "./vectors.ts";

describe("shared vectors", () => {
  for (const vector of loadVectors<{ value: unknown; hex: string }>("values")) {
    test(vector.hex.slice(0, 24) || "nothing", () => {
      const value = untag(vector.value);
      expect(hex(encode(value))).toBe(vector.hex);
      expect(decode(unhex(vector.hex))).toStrictEqual(value);
    });
  }
});

describe("encode", () => {
  test("leaves undefined fields out", () => {
    expect(decode(encode({ a: 1, b: undefined }))).toStrictEqual({ a: 1 });
  });

  test("refuses what MessagePack here does not carry", () => {
    for (const value of [2n ** 64n, -(2n ** 63n) - 1n]) expect(() => encode(value)).toThrow(RangeError);
    for (const value of [
      () => 1,
      Symbol("x"),
      new Float32Array(2),
      new ArrayBuffer(2),
      new DataView(new ArrayBuffer(1)),
    ]) {
      expect(() => encode({ value })).toThrow(TypeError);
    }
  });

  test("gives bytes of its own", () => {
    const first = encode({ a: "first" });
    const before = hex(first);
    for (let i = 0; i < 100; i++) encode({ b: "x".repeat(i * 10) });
    expect(hex(first)).toBe(before);
  });
});

describe("decode", () => {
  test("copies byte strings out of the frame", () => {
    const frame = encode({ data: Uint8Array.of(1, 2, 3) });
    const { data } = decode(frame) as { data: Uint8Array };
    frame.fill(0);
    expect(data).toStrictEqual(Uint8Array.of(1, 2, 3));
  });

  test("refuses extensions and keys that reach a prototype", () => {
    const proto = Buffer.concat([unhex("81a9"), Buffer.from("__proto__"), unhex("81a16101")]);
    for (const frame of [unhex("c1"), unhex("d6ff00000000"), unhex("c70c0100"), proto]) {
      expect(() => decode(frame)).toThrow();
    }
  });

  test("does not take a length at its word", () => {
    const before = process.memoryUsage().rss;
    for (const header of ["dd00ffffff", "df00ffffff", "ddffffffff", "c6ffffffff", "dbffffffff"]) {
      expect(() => decode(unhex(header.repeat(10)))).toThrow();
    }
    expect(process.memoryUsage().rss - before).toBeLessThan(50e6);
  });
});

const int64 = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
const float = fc.double({ noNaN: true, noDefaultInfinity: true }).filter((x) => !Number.isInteger(x));
const value = fc.letrec((tie) => ({
  any: fc.oneof(
    { maxDepth: 4 },
    fc.constant(null),
    fc.boolean(),
    fc.integer(),
    int64,
    float,
    fc.string({ unit: "grapheme" }),
    fc.uint8Array(),
    fc.array(tie("any"), { maxLength: 20 }),
    fc.dictionary(
      fc.string({ unit: "grapheme-ascii" }).filter((key) => key !== "__proto__"),
      tie("any"),
      { noNullPrototype: true },
    ),
  ),
})).any;

/** What a decoder gives back: integers as numbers while they are safe. */
function normal(value: unknown): unknown {
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : value;
  if (Array.isArray(value)) return value.map(normal);
  if (typeof value !== "object" || value === null || value instanceof Uint8Array) return value;
  return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, normal(entry)]));
}

test("every value survives", () => {
  fc.assert(
    fc.property(value, (original) => {
      const decoded = decode(encode(original));
      expect(decoded).toStrictEqual(normal(original));
      expect(hex(encode(decoded))).toBe(hex(encode(original)));
    }),
    { numRuns: 300 },
  );
});

test("any bytes are decoded or refused, never more", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      try {
        decode(bytes);
      } catch (error) {
        expect(error).toBeInstanceOf(Error);
      }
    }),
    { numRuns: 2000 },
  );
});
