import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { ModelError } from "../../src/index.ts";
import { canonicalJson, fingerprint, modelGeometry, modelIdentity } from "../../src/stats/fingerprint.ts";
import { rotaryFrequencies } from "../../src/stats/rotary.ts";
import { errorOf } from "./helpers.ts";

interface Accepted {
  name: string;
  config: Record<string, unknown>;
  canonical: string;
  fingerprint: string;
  pairing: string;
  attentionScaling: number;
  inverse: number[];
}
const file = join(import.meta.dirname, "../../../../test/vectors/fingerprints.json");
const vectors = JSON.parse(readFileSync(file, "utf8")) as {
  accepted: Accepted[];
  refused: { name: string; config: Record<string, unknown>; field: string }[];
};

describe.each(vectors.accepted)("$name", (vector) => {
  test("has the fingerprint that the Python side gives it", () => {
    const identity = modelIdentity(vector.config);
    expect(canonicalJson(identity)).toBe(vector.canonical);
    expect(fingerprint(identity)).toBe(vector.fingerprint);
    const model = modelGeometry(vector.config, "m", null);
    expect(model.fingerprint).toBe(vector.fingerprint);
    expect(model.rotary?.pairing).toBe(vector.pairing);
    expect(model.rotary?.attentionScaling).toBeCloseTo(vector.attentionScaling, 12);
  });

  test("has the frequencies that transformers computes", () => {
    const rotary = modelIdentity(vector.config).rotary;
    const inverse = rotary === null ? [] : [...rotaryFrequencies(rotary).inverse];
    expect(inverse).toHaveLength(vector.inverse.length);
    for (const [f, value] of inverse.entries()) {
      expect(Math.abs(value / (vector.inverse[f] as number) - 1)).toBeLessThan(5e-7);
    }
  });
});

test.each(vectors.refused)("$name: refused, naming $field", ({ config, field }) => {
  const error = errorOf(() => modelGeometry(config, "m", null));
  expect(error).toBeInstanceOf(ModelError);
  expect(error.field).toBe(field);
  expect(error.remedy).not.toBe("");
});

test.each([
  ["head_dim", { model_type: "qwen3", num_key_value_heads: 2 }],
  ["num_key_value_heads", { model_type: "mistral" }],
  ["rope_theta", { model_type: "mistral", num_key_value_heads: 2, rope_theta: null }],
])("%s is not guessed where the type has a default of its own", (field, change) => {
  const common = {
    hidden_size: 64,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    vocab_size: 9,
    rope_theta: 1e4,
  };
  expect(errorOf(() => modelIdentity({ ...common, ...change })).field).toBe(field);
});

test.each([
  [1e6, "1000000"],
  [1e-7, "0.0000001"],
  [-2.5e-9, "-0.0000000025"],
  [1e22, "10000000000000000000000"],
  [0.1, "0.1"],
  [{ b: [1, null], a: true }, '{"a":true,"b":[1,null]}'],
])("canonical form of %j", (value, text) => {
  expect(canonicalJson(value)).toBe(text);
});
