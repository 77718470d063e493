import { Decoder } from "@msgpack/msgpack";
import fc from "fast-check";
import { expect, test } from "vitest";
import { checkFrame } from "../src/frame-check.ts";
import { decode, encode } from "../src/index.ts";

const passes = (check: () => unknown) => {
  try {
    check();
    return true;
  } catch {
    return false;
  }
};

test("whatever is encoded passes", () => {
  const value = fc.letrec((tie) => ({
    any: fc.oneof(
      { maxDepth: 6 },
      fc.constant(null),
      fc.boolean(),
      fc.double(),
      fc.bigInt({ min: -(2n ** 63n), max: 2n ** 64n - 1n }),
      fc.string({ unit: "grapheme", maxLength: 300 }),
      fc.uint8Array({ maxLength: 300 }),
      fc.array(tie("any"), { maxLength: 40 }),
      fc.dictionary(fc.string(), tie("any"), { maxKeys: 40 }),
    ),
  })).any;
  fc.assert(fc.property(value, (item) => checkFrame(encode(item))));
});

test("of bytes at random, it takes what a decoder without limits takes", () => {
  const decoder = new Decoder({ useBigInt64: true });
  // Heads are what matters: half of all bytes are one.
  const byte = fc.oneof(fc.integer({ min: 0x80, max: 0xff }), fc.integer({ min: 0, max: 16 }));
  fc.assert(
    fc.property(fc.array(byte, { minLength: 1, maxLength: 12 }), (bytes) => {
      const frame = Uint8Array.from(bytes);
      // Text that is no UTF-8, and keys that are no text, are a decoder's business.
      if (passes(() => decoder.decode(frame))) expect(passes(() => checkFrame(frame))).toBe(true);
      if (!passes(() => checkFrame(frame))) expect(passes(() => decoder.decode(frame))).toBe(false);
    }),
    { numRuns: 5000 },
  );
});

test("few bytes that promise much cost nothing", () => {
  const begun = performance.now();
  for (const byte of [0xdc, 0xdd, 0xde, 0xdf, 0x91, 0x9f, 0x81]) {
    expect(() => decode(new Uint8Array(1 << 20).fill(byte))).toThrow(/MessagePack/);
  }
  expect(performance.now() - begun).toBeLessThan(2000);
});

test.each([
  [[], /ends too early/],
  [[0x92, 1], /promises more/],
  [[0xdb, 0, 0, 1, 0], /promises more/],
  [[1, 2], /1 bytes after its end/],
  [[0xc1], /means nothing/],
  [[0xcd, 1], /promises more/],
  [[0xdc, 0], /ends too early/],
])("%j", (bytes, message) => {
  expect(() => checkFrame(Uint8Array.from(bytes))).toThrow(message);
});
