import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, test } from "vitest";
import {
  loadStatistics,
  ModelError,
  StatisticsLibrary,
  shippedStatisticsDirectory,
} from "../../src/index.ts";
import { encodeSafetensors } from "../../src/stats/safetensors.ts";
import { weightsDigest } from "../../src/stats/weights.ts";
import { temporaryDirectory } from "../helpers.ts";
import { errorOf, modelDirectory, saveTiny, tiny } from "./helpers.ts";

let root: string;
let user: string;
const library = (environment: NodeJS.ProcessEnv = {}) =>
  new StatisticsLibrary({ shipped: null, user }, { HOME: root, HF_HOME: join(root, "hf"), ...environment });

beforeEach(() => {
  root = temporaryDirectory();
  user = join(root, "stats");
  mkdirSync(user);
});

function weights(directory: string, seed: number): string {
  const values = Float32Array.from({ length: 64 }, (_, i) => i + seed);
  const tensors = ["q_proj", "k_proj"].map((p): [string, number[], Float32Array] => [
    `model.layers.0.self_attn.${p}.weight`,
    [8, 8],
    values,
  ]);
  writeFileSync(join(directory, "model.safetensors"), encodeSafetensors(tensors, {}));
  return weightsDigest(directory) as string;
}

test("the shipped statistics are listed and whole", () => {
  const shipped = shippedStatisticsDirectory() as string;
  const { entries } = new StatisticsLibrary({ user: null });
  const files = readdirSync(shipped).filter((name) => name.endsWith(".safetensors"));
  expect(entries.map(({ path }) => path).sort()).toStrictEqual(
    files.map((name) => join(shipped, name)).sort(),
  );
  for (const { path, fingerprint, weights: digest, tokens, models } of entries) {
    const { metadata } = loadStatistics(path);
    expect(metadata.model).toMatchObject({ fingerprint, weights: digest, name: models[0] });
    expect(metadata.tokens).toBe(tokens);
  }
});

describe("lookup", () => {
  test("by the weights, whatever the directory is called", () => {
    const model = modelDirectory(root, "renamed");
    saveTiny(join(user, "a.safetensors"), { name: "org/a", weights: "0".repeat(64) });
    saveTiny(join(user, "b.safetensors"), { name: "org/b", weights: weights(model, 1) });
    expect(library().lookup(model)).toMatchObject({ by: "weights", entry: { name: "b" } });
  });

  test("by name, for a directory and in the hub's cache", () => {
    saveTiny(join(user, "a.safetensors"), { name: "org/Tiny" });
    expect(library().lookup(modelDirectory(root, "tiny"))).toMatchObject({
      by: "name",
      entry: { name: "a" },
    });
    expect(library().lookup("org/tiny")).toMatchObject({ by: "name", model: null });
    const repository = join(root, "hf", "hub", "models--org--Tiny");
    mkdirSync(join(repository, "refs"), { recursive: true });
    writeFileSync(join(repository, "refs", "main"), "abc\n");
    modelDirectory(join(repository, "snapshots"), "abc");
    expect(library().lookup("org/Tiny").model).toMatchObject({ name: "org/Tiny", layers: 2 });
    modelDirectory(join(repository, "snapshots"), "abc", { ...tiny, vocab_size: 7 });
    expect(errorOf(() => library().lookup("org/Tiny")).message).toMatch(
      /a has fingerprint \w{32}, this model \w{32}/,
    );
  });

  test("never by the geometry alone, but such candidates are named", () => {
    saveTiny(join(user, "base.safetensors"), { name: "org/base" });
    const error = errorOf(() => library().lookup(modelDirectory(root, "fine-tune")));
    expect(error.message).toContain("other weights of the same geometry: base");
    expect(error.message).toContain("triattn calibrate");
  });

  test("not by name when the weights are known to be others", () => {
    const model = modelDirectory(root, "tiny");
    weights(model, 1);
    saveTiny(join(user, "tiny.safetensors"), { name: "org/tiny", weights: "0".repeat(64) });
    expect(errorOf(() => library().lookup(model)).message).toContain("no statistics belong to it");
  });

  test("of names that there are not", () => {
    expect(errorOf(() => library().lookup("org/other")).message).toContain("none for org/other");
    for (const path of ["./missing", join(root, "missing"), root]) {
      expect(errorOf(() => library().lookup(path))).toBeInstanceOf(ModelError);
    }
  });
});

describe("use", () => {
  test("by file, by name and by the model's name", () => {
    const path = join(user, "a.safetensors");
    saveTiny(path, { name: "org/Tiny" });
    const model = modelDirectory(root, "anything");
    expect(library().use(path, model)).toMatchObject({ by: "path", entry: { path } });
    expect(library().use("a", model)).toMatchObject({ by: "name", entry: { path } });
    expect(library().use("org/tiny", "org/unknown")).toMatchObject({ by: "name", model: null });
    expect(errorOf(() => library().use("b", model)).message).toContain("known are: a");
  });

  test("of another model is refused with both fingerprints", () => {
    const path = join(root, "a.safetensors");
    saveTiny(path);
    const { fingerprint } = loadStatistics(path).metadata.model;
    const model = modelDirectory(root, "larger", { ...tiny, num_hidden_layers: 9 });
    const own = library().geometry(model)?.fingerprint as string;
    const { message } = errorOf(() => library().use(path, model));
    expect(message).toContain(fingerprint);
    expect(message).toContain(own);
  });

  test("of a damaged file is refused; it does not hide the others", () => {
    const path = join(user, "a.safetensors");
    saveTiny(path);
    saveTiny(join(user, "b.safetensors"), { name: "org/b" });
    writeFileSync(path, readFileSync(path).subarray(0, 60));
    expect(library().entries.map(({ name }) => name)).toStrictEqual(["b"]);
    expect(errorOf(() => library().use(path, "org/x")).message).toContain("truncated");
  });
});
