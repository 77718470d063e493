import { truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { encodeSafetensors } from "../../src/stats/safetensors.ts";
import { weightsDigest } from "../../src/stats/weights.ts";
import { temporaryDirectory } from "../helpers.ts";

const Q = "model.layers.0.self_attn.q_proj.weight";
const K = "model.layers.0.self_attn.k_proj.weight";
const ramp = (rows: number) => Float32Array.from({ length: rows * 96 }, (_, i) => i % 251);
const tensors = (): [string, number[], Float32Array][] => [
  ["lm_head.weight", [3, 96], ramp(3)],
  [Q, [128, 96], ramp(128)],
  [K, [16, 96], ramp(16)],
];

test("the digest is the one that the Python side computes", () => {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, "model.safetensors"), encodeSafetensors(tensors(), { format: "pt" }));
  // As in kernels/tests/stats/test_weights.py.
  const digest = "cadad3aa68ae44119cc9a562e9fda1879258ee12807a345091d7f4f2aa7d3952";
  expect(weightsDigest(directory)).toBe(digest);

  const two = temporaryDirectory();
  const [head, q, k] = tensors() as [[string, number[], Float32Array], ...[string, number[], Float32Array][]];
  writeFileSync(join(two, "a.safetensors"), encodeSafetensors(q ? [q] : [], {}));
  writeFileSync(join(two, "b.safetensors"), encodeSafetensors(k ? [head, k] : [], {}));
  const index = {
    weight_map: { [Q]: "a.safetensors", [K]: "b.safetensors", "lm_head.weight": "b.safetensors" },
  };
  writeFileSync(join(two, "model.safetensors.index.json"), JSON.stringify(index));
  expect(weightsDigest(two)).toBe(digest);
});

test("null where weights cannot be compared", () => {
  const directory = temporaryDirectory();
  expect(weightsDigest(directory)).toBeNull();
  expect(weightsDigest(join(directory, "missing"))).toBeNull();
  const file = join(directory, "model.safetensors");
  writeFileSync(file, encodeSafetensors(tensors().slice(0, 2), {}));
  expect(weightsDigest(directory)).toBeNull();
  writeFileSync(file, encodeSafetensors(tensors(), {}));
  truncateSync(file, 2000);
  expect(weightsDigest(directory)).toBeNull();
});
