import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  ControlMessage,
  decode,
  EngineMessage,
  encode,
  PolicyDocument,
  presets,
  referenceEnvironment,
} from "../src/index.ts";
import { hex, loadVectors, unhex, untag } from "./vectors.ts";

interface Vector {
  readonly name: string;
  readonly from: "engine" | "control";
  readonly message: unknown;
  readonly hex: string;
  /** False where the same number has two encodings (a whole float is an integer here). */
  readonly reencode?: false;
}

const schemas = { engine: EngineMessage, control: ControlMessage };

/** Ints where Python has ints: a bigint field holds a BigInt of any size after parsing. */
const plain = (value: unknown): unknown => decode(encode(value));

describe("shared vectors", () => {
  for (const vector of loadVectors<Vector>("messages")) {
    test(vector.name, () => {
      const message = schemas[vector.from].parse(decode(unhex(vector.hex)));
      expect(plain(message)).toStrictEqual(plain(untag(vector.message)));
      if (vector.reencode !== false) expect(hex(encode(message))).toBe(vector.hex);
    });
  }

  for (const vector of loadVectors<Vector>("refused")) {
    test(`refuses: ${vector.name}`, () => {
      let value: unknown;
      try {
        value = decode(unhex(vector.hex));
      } catch {
        return;
      }
      expect(schemas[vector.from].safeParse(value).success).toBe(false);
    });
  }
});

test("64-bit fields are BigInt however short they travelled", () => {
  const ack = EngineMessage.parse(decode(encode({ type: "ack", revision: 1, step: 5 })));
  expect(ack).toStrictEqual({ type: "ack", revision: 1, step: 5n });
  for (const step of [0.5, "5", true, -1, 2n ** 63n]) {
    expect(EngineMessage.safeParse({ type: "ack", revision: 1, step }).success).toBe(false);
  }
});

test("presets are policies, and carry their own names", () => {
  for (const [name, preset] of Object.entries(presets)) expect(PolicyDocument.parse(preset).name).toBe(name);
  expect(PolicyDocument.safeParse(referenceEnvironment.base).success).toBe(true);
});

test("what the schema accepts, the schema accepts again", () => {
  const document = fc.record(
    {
      name: fc.stringMatching(/^[a-z0-9][a-z0-9._-]{0,63}$/),
      budget: fc.nat(16777216),
      terms: fc.array(
        fc.record({
          kind: fc.constantFrom("trig", "norm", "random"),
          weight: fc.double({ min: -1e6, max: 1e6, noNaN: true }).filter((x) => !Object.is(x, -0)),
        }),
        { minLength: 1, maxLength: 16 },
      ),
      pin: fc.record({ sinks: fc.nat(65536), window: fc.nat(1048576) }, { requiredKeys: [] }),
      seed: fc.nat(4294967295),
    },
    { requiredKeys: ["name", "terms"] },
  );
  fc.assert(
    fc.property(document, (input) => {
      const policy = PolicyDocument.parse(input);
      expect(PolicyDocument.parse(decode(encode(policy)))).toEqual(policy);
    }),
  );
});
