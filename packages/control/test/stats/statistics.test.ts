import { readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test, vi } from "vitest";
import {
  checkStatistics,
  hasCovariance,
  hasProbe,
  loadStatistics,
  readStatisticsMetadata,
  StatisticsError,
} from "../../src/index.ts";
import { modelGeometry } from "../../src/stats/fingerprint.ts";
import { encodeSafetensors, withSafetensors } from "../../src/stats/safetensors.ts";
import { temporaryDirectory } from "../helpers.ts";
import { errorOf, saveTiny, tiny, tinyTensors } from "./helpers.ts";

const disk = vi.hoisted(() => ({ full: false }));
vi.mock("node:fs", async (original) => {
  const fs = await original<typeof import("node:fs")>();
  const writeSync = (...args: Parameters<typeof fs.writeSync>) => {
    if (!disk.full) return fs.writeSync(...args);
    throw Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC" });
  };
  return { ...fs, writeSync };
});

function saved(): string {
  const path = join(temporaryDirectory(), "tiny.safetensors");
  saveTiny(path);
  return path;
}

test("round trip", () => {
  const path = saved();
  const { metadata, tensors } = loadStatistics(path);
  expect(tensors).toStrictEqual(tinyTensors());
  expect(metadata.model).toStrictEqual(modelGeometry(tiny, "tiny", null));
  expect(readStatisticsMetadata(path)).toStrictEqual(metadata);
});

const learned = {
  terms: ["trig", "keydiff"] as ("trig" | "keydiff")[],
  tokens: 50,
  seed: 0,
  kept: { random: 0.25 },
};
const learnedTensors = () => ({
  ...tinyTensors(),
  learned_weights: Float32Array.from({ length: 8 }, (_, i) => i - 4),
  learned_share: Float32Array.from([0, 0.25, 0.5, 1]),
});

test("learned weights come along", () => {
  const path = join(temporaryDirectory(), "tiny.safetensors");
  saveTiny(path, { tensors: learnedTensors(), learned });
  const { metadata, tensors } = loadStatistics(path);
  expect(tensors).toStrictEqual(learnedTensors());
  expect(metadata).toMatchObject({ format: 2, learned });
});

test.each([
  [{ learned_share: new Float32Array(4).fill(1.5) }, learned, "learned_share"],
  [{ learned_weights: new Float32Array(8).fill(Number.NaN) }, learned, "learned_weights"],
  [{}, null, "learned"],
  [{}, { ...learned, terms: ["trig", "trig"] as ("trig" | "keydiff")[] }, "twice"],
])("what was never learned is refused: %#", (change, what, words) => {
  const path = join(temporaryDirectory(), "tiny.safetensors");
  const tensors = { ...learnedTensors(), ...change };
  expect(errorOf(() => saveTiny(path, { tensors, learned: what })).message).toContain(words);
});

const covariance = (change: (i: number) => number = () => 0) => ({
  ...tinyTensors(),
  // Variances that q_abs_mean allows, and no covariance.
  q_covariance: Float32Array.from({ length: 96 }, (_, i) => (i < 64 ? 40_000 : 0) + change(i)),
});

test("covariances come along", () => {
  const path = join(temporaryDirectory(), "tiny.safetensors");
  saveTiny(path, { tensors: covariance() });
  const { metadata, tensors } = loadStatistics(path);
  expect(tensors).toStrictEqual(covariance());
  expect(metadata.format).toBe(3);
  expect(hasCovariance(metadata)).toBe(true);
  expect(hasCovariance(readStatisticsMetadata(saved()))).toBe(false);
});

test.each([
  [covariance((i) => (i === 3 ? -50_000 : 0)), "a negative variance"],
  [covariance((i) => (i === 70 ? 41_000 : 0)), "larger than its variances allow"],
  [covariance((i) => (i < 64 ? -39_999 : 0)), "smaller than q_abs_mean allows"],
  [covariance((i) => (i === 5 ? Number.NaN : 0)), "not finite"],
  [{ ...covariance(), q_covariance: new Float32Array(64) }, "q_covariance"],
])("covariances that cannot be are refused: %#", (tensors, words) => {
  const path = join(temporaryDirectory(), "tiny.safetensors");
  const { message } = errorOf(() => saveTiny(path, { tensors }));
  expect(message).toContain(words);
});

const probed = (units = 16) => ({
  ...learnedTensors(),
  ...covariance(),
  learned_probe: Float32Array.from({ length: 4 * (8 + 6) * units }, (_, i) => i / 8 - 2),
});
const withProbe = { ...learned, terms: ["trig", "probe"] as ("trig" | "probe")[] };

test.each([16, 32, 64])("a probe of %d units comes along", (units) => {
  const path = join(temporaryDirectory(), "probe.safetensors");
  saveTiny(path, { tensors: probed(units), learned: withProbe });
  const { metadata, tensors } = loadStatistics(path);
  expect(tensors).toStrictEqual(probed(units));
  expect(metadata.format).toBe(5);
  expect([hasProbe(metadata), hasCovariance(metadata)]).toEqual([true, true]);
});

test("a probe and its term go together", () => {
  const path = join(temporaryDirectory(), "probe-alone.safetensors");
  const { learned_probe: _, ...without } = probed();
  for (const [tensors, terms] of [
    [probed(), learned],
    [without, withProbe],
  ] as const) {
    expect(errorOf(() => saveTiny(path, { tensors, learned: terms })).message).toContain(
      "probe and learned_probe go together",
    );
  }
  const short = { ...probed(), learned_probe: new Float32Array(4) };
  for (const tensors of [short, probed(8), probed(48)]) {
    expect(errorOf(() => saveTiny(path, { tensors, learned: withProbe })).message).toContain("learned_probe");
  }
});

test("a term expected is not learned without covariances", () => {
  const path = join(temporaryDirectory(), "tiny.safetensors");
  const terms: ("trig" | "expected")[] = ["trig", "expected"];
  const run = () => saveTiny(path, { tensors: learnedTensors(), learned: { ...learned, terms } });
  expect(errorOf(run).message).toContain("expected needs q_covariance");
});

test("every truncation is refused", () => {
  const path = saved();
  const data = readFileSync(path);
  for (let length = data.length - 1; length >= 0; length -= 13) {
    truncateSync(path, length);
    expect(errorOf(() => loadStatistics(path))).toBeInstanceOf(StatisticsError);
  }
  writeFileSync(path, Buffer.concat([data, Buffer.from("x")]));
  expect(errorOf(() => loadStatistics(path)).message).toContain("bytes after the last tensor");
});

test("changed bytes are refused, or change nothing but free text", () => {
  const path = saved();
  const data = readFileSync(path);
  const whole = loadStatistics(path);
  const start = 8 + Number(data.readBigUInt64LE());
  for (let at = 0; at < data.length; at += 3) {
    const damaged = Buffer.from(data);
    damaged.writeUInt8(damaged.readUInt8(at) ^ 1, at);
    writeFileSync(path, damaged);
    let found: ReturnType<typeof loadStatistics>;
    try {
      found = loadStatistics(path);
    } catch (error) {
      expect(error).toBeInstanceOf(StatisticsError);
      continue;
    }
    expect(at).toBeLessThan(start);
    expect(found.tensors).toStrictEqual(whole.tensors);
    expect({ ...found.metadata.model, name: "" }).toStrictEqual({ ...whole.metadata.model, name: "" });
  }
});

const header = (tensors: object, size = 8): Buffer => {
  const text = Buffer.from(JSON.stringify(tensors));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, Buffer.alloc(size)]);
};
const F32 = (from: number, to: number, shape = [(to - from) / 4]) => ({
  dtype: "F32",
  shape,
  data_offsets: [from, to],
});

test.each([
  ["overlap", header({ a: F32(0, 8), b: F32(4, 8) }), "should begin at 8"],
  ["gap", header({ a: F32(0, 4), b: F32(8, 12) }, 12), "should begin at 4"],
  ["wrong span", header({ a: F32(0, 8, [3]) }), "should span 12"],
  ["beyond the end", header({ a: F32(0, 16) }), "is truncated"],
  ["unknown dtype", header({ a: { ...F32(0, 8), dtype: "F7" } }), "is unknown"],
  ["negative offset", header({ a: { ...F32(0, 8), data_offsets: [-8, 0] } }), "badly described"],
  ["no shape", header({ a: { dtype: "F32", data_offsets: [0, 8] } }), "badly described"],
  ["metadata that is no text", header({ __metadata__: { a: 1 }, b: F32(0, 8) }), "is not text"],
  ["array", header([1, 2]), "is not an object"],
  ["huge header", Buffer.from("ffffffffffffff7f00", "hex"), "no header"],
  ["other kind of file", Buffer.from("PK\x03\x04 something else entirely"), "no header"],
  ["empty", Buffer.alloc(0), "no header"],
])("a safetensors file with %s is refused", (_, data, words) => {
  const path = join(temporaryDirectory(), "x.safetensors");
  writeFileSync(path, data);
  const error = errorOf(() => withSafetensors(path, () => 0));
  expect(error).toBeInstanceOf(StatisticsError);
  expect(error.message).toContain(words);
});

test("a file of other tensors, a missing file, a directory", () => {
  const directory = temporaryDirectory();
  const path = join(directory, "x.safetensors");
  writeFileSync(path, encodeSafetensors([["weight", [2], new Float32Array(2)]], { format: "pt" }));
  expect(errorOf(() => loadStatistics(path)).message).toContain("not of triattn statistics");
  expect(errorOf(() => loadStatistics(join(directory, "missing"))).message).toContain(
    "cannot be read (ENOENT)",
  );
  expect(errorOf(() => loadStatistics(directory)).message).toContain("is not a file");
});

test("another model is refused with both fingerprints, other weights with both digests", () => {
  const { metadata } = loadStatistics(saved());
  const own = metadata.model;
  checkStatistics(metadata, { ...own, name: "same thing" }, "f");
  const other = modelGeometry({ ...tiny, num_hidden_layers: 3 }, "other", null);
  const error = errorOf(() => checkStatistics(metadata, other, "f"));
  for (const part of [own.fingerprint, other.fingerprint, "tiny", "other", "layers 2 and 3"]) {
    expect(error.message).toContain(part);
  }
  const vocabulary = modelGeometry({ ...tiny, vocab_size: 101 }, "other", null);
  expect(errorOf(() => checkStatistics(metadata, vocabulary, "f")).message).toContain(vocabulary.fingerprint);
  const measured = { ...metadata, model: { ...own, weights: "aaa" } };
  checkStatistics(measured, { ...own, weights: null }, "f");
  const fine = errorOf(() => checkStatistics(measured, { ...own, weights: "bbb" }, "f"));
  expect(fine.field).toBe("weights");
  expect(fine.message).toMatch(/aaa.*bbb/s);
});

test("a write that fails leaves what was there, and nothing else", () => {
  const path = saved();
  const directory = join(path, "..");
  const before = readFileSync(path);
  disk.full = true;
  const error = errorOf(() => saveTiny(path, { name: "other" }));
  disk.full = false;
  expect(error).toBeInstanceOf(StatisticsError);
  expect(error.message).toContain("no space left");
  expect(errorOf(() => saveTiny(join(directory, "missing", "x"))).message).toContain(
    "cannot be written (ENOENT)",
  );
  const impossible = { ...tinyTensors(), q_abs_mean: new Float32Array(32) };
  expect(errorOf(() => saveTiny(path, { tensors: impossible })).message).toContain("impossible for means");
  expect(readFileSync(path)).toStrictEqual(before);
  expect(readdirSync(directory)).toStrictEqual(["tiny.safetensors"]);
});
