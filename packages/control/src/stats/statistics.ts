import { createHash } from "node:crypto";
import { ModelGeometry } from "@triattn/protocol";
import { z } from "zod";
import { writeAtomically } from "./atomic.ts";
import { StatisticsError } from "./errors.ts";
import { fingerprint, type ModelIdentity } from "./fingerprint.ts";
import { type RotaryParameters, rotaryFrequencies } from "./rotary.ts";
import { encodeSafetensors, type Safetensors, withSafetensors } from "./safetensors.ts";

export const STATISTICS_FORMAT = 5;
const TENSORS = ["q_mean_real", "q_mean_imag", "q_abs_mean", "inv_freq"] as const;
/** Of format 2: what calibration learned of selection. */
const LEARNED = ["learned_weights", "learned_share"] as const;
/** Of format 3, and what makes a file one: covariances of the queries. */
const COVARIANCE = "q_covariance";
/** Of format 5, beside those: the network of the term `probe`. What was format 4 had a linear one. */
const PROBE = "learned_probe";
/** Hidden units of a probe, and its rows beside those of a key's dimensions. */
const UNITS: readonly number[] = [16, 32, 64];
const BESIDE_KEYS = 6;
const OPTIONAL = [...LEARNED, COVARIANCE, PROBE] as const;
type TensorName = (typeof TENSORS)[number] | (typeof OPTIONAL)[number];
const REMEDY = "get the file again, or make it with `triattn calibrate`";

/** How weights of score terms were learned, and what share of later attention they keep on text not fitted on. */
export const LearnedSelection = z.strictObject({
  terms: z
    .array(
      z.enum([
        "trig",
        "norm",
        "keydiff",
        "superseded",
        "recency",
        "knorm",
        "vnorm",
        "probe",
        "expected",
        "leverage",
      ]),
    )
    .min(1)
    .refine((terms) => new Set(terms).size === terms.length, "names a term twice"),
  tokens: z.int().min(1),
  seed: z.int().min(0),
  kept: z.record(z.string(), z.number().min(0).max(1)),
});

/** The JSON under the key `triattn` of a statistics file's metadata; kernels/triattn/statistics.py writes the same. */
export const StatisticsMetadata = z.strictObject({
  format: z.union([z.literal(1), z.literal(2), z.literal(3), z.literal(STATISTICS_FORMAT)]),
  model: ModelGeometry,
  identity: z.record(z.string(), z.unknown()).describe("What the fingerprint was taken over."),
  sha256: z
    .string()
    .describe(`Over the tensors' bytes, in the order ${[...TENSORS, ...OPTIONAL].join(", ")}.`),
  tokens: z.int().min(1).nullable().default(null),
  source: z.string().default(""),
  license: z.string().default(""),
  created_by: z.string().default(""),
  learned: LearnedSelection.nullable().default(null),
});
export type LearnedSelection = z.infer<typeof LearnedSelection>;
export type StatisticsMetadata = z.infer<typeof StatisticsMetadata>;

/** Statistics per query head and band, row-major [layers, queryHeads, F], and the F frequencies. */
export interface StatisticsTensors {
  q_mean_real: Float32Array;
  q_mean_imag: Float32Array;
  q_abs_mean: Float32Array;
  inv_freq: Float32Array;
  /** [terms, layers, kvHeads], the terms as in `learned.terms`. */
  learned_weights?: Float32Array;
  /** [layers, kvHeads]: part of the free places that is reserved for distinct tokens. */
  learned_share?: Float32Array;
  /** [3, layers, queryHeads, F]: variances of the real and of the imaginary part, and their covariance. */
  q_covariance?: Float32Array;
  /** [layers, kvHeads, headDim + 6, hidden units]: see the term `probe`. */
  learned_probe?: Float32Array;
}

/** Whether a statistics file has covariances of the queries, which the term `expected` needs. */
export function hasCovariance({ format }: Pick<StatisticsMetadata, "format">): boolean {
  return format >= 3;
}

/** Whether a statistics file has what the term `probe` needs. */
export function hasProbe({ format }: Pick<StatisticsMetadata, "format">): boolean {
  return format === STATISTICS_FORMAT;
}

/** Hidden units of a file's probe, null where it has none. */
export function probeUnits(
  model: StatisticsMetadata["model"],
  { learned_probe: probe }: StatisticsTensors,
): number | null {
  return probe === undefined
    ? null
    : probe.length / (model.layers * model.kvHeads * (model.headDim + BESIDE_KEYS));
}

function floats(data: Buffer): Float32Array {
  const copy = new Uint8Array(data);
  return new Float32Array(copy.buffer, 0, copy.length / 4);
}

function digest(tensors: StatisticsTensors): string {
  const hash = createHash("sha256");
  for (const name of [...TENSORS, ...OPTIONAL]) {
    const tensor = tensors[name];
    if (tensor !== undefined) hash.update(Buffer.from(tensor.buffer, tensor.byteOffset, tensor.byteLength));
  }
  return hash.digest("hex");
}

function readMetadata(file: Safetensors, path: string): StatisticsMetadata {
  const text = file.metadata.triattn;
  if (text === undefined) {
    throw new StatisticsError(
      "statistics",
      path,
      `a safetensors file, but not of triattn statistics; ${REMEDY}`,
    );
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new StatisticsError("metadata", path, `is not JSON; ${REMEDY}`);
  }
  const form = (json as { format?: unknown } | null)?.format;
  if (form !== 1 && form !== 2 && form !== 3 && form !== STATISTICS_FORMAT) {
    const remedy = `this triattn reads 1, 2, 3 and ${STATISTICS_FORMAT}; ${REMEDY}`;
    throw new StatisticsError(`format of ${path}`, form ?? null, remedy);
  }
  const metadata = StatisticsMetadata.safeParse(json);
  if (!metadata.success) {
    throw new StatisticsError(`metadata of ${path}`, z.prettifyError(metadata.error), REMEDY);
  }
  const { model, identity } = metadata.data;
  const own = fingerprint(identity);
  if (own !== model.fingerprint) {
    const remedy = `its own parameters give ${own}; ${REMEDY}`;
    throw new StatisticsError(`fingerprint of ${path}`, model.fingerprint, remedy);
  }
  const { rotary } = identity as { rotary: Record<string, unknown> | null };
  const pairs: [unknown, unknown][] = [
    ...(["layers", "queryHeads", "kvHeads", "headDim"] as const).map((f): [unknown, unknown] => [
      model[f],
      identity[f],
    ]),
    ...(["type", "theta", "dim"] as const).map((f): [unknown, unknown] => [model.rotary?.[f], rotary?.[f]]),
  ];
  if (pairs.some(([a, b]) => a === undefined || a !== b)) {
    const remedy = `differs from its own parameters ${JSON.stringify(identity)}; ${REMEDY}`;
    throw new StatisticsError(`model of ${path}`, model, remedy);
  }
  return metadata.data;
}

/** Hidden units of a probe; the least of what they may be where there are as many as cannot be. */
function unitsOf(found: number | null | undefined): number {
  return UNITS.includes(found ?? 0) ? (found as number) : (UNITS[0] as number);
}

function shapesOf(
  { model, learned }: StatisticsMetadata,
  bands: number,
  units: number,
): (name: TensorName) => number[] {
  const { layers, queryHeads, kvHeads } = model;
  const others: Partial<Record<TensorName, number[]>> = {
    inv_freq: [bands],
    learned_weights: [learned?.terms.length ?? 0, layers, kvHeads],
    learned_share: [layers, kvHeads],
    q_covariance: [3, layers, queryHeads, bands],
    learned_probe: [layers, kvHeads, model.headDim + BESIDE_KEYS, units],
  };
  return (name) => others[name] ?? [layers, queryHeads, bands];
}

function readTensors(file: Safetensors, metadata: StatisticsMetadata, path: string): StatisticsTensors {
  const { rotary } = metadata.model;
  const names = [...file.tensors.keys()].sort();
  const { format } = metadata;
  const allowed: readonly string[] =
    format === 1 ? TENSORS : [...TENSORS, ...(format === 2 ? LEARNED : OPTIONAL)];
  if (
    !TENSORS.every((name) => names.includes(name)) ||
    !names.every((name) => allowed.includes(name)) ||
    rotary === null
  ) {
    throw new StatisticsError(
      `tensors of ${path}`,
      names.join(", "),
      `must be ${TENSORS.join(", ")}, and from format 2 may be ${LEARNED.join(", ")}, from format 3 ${COVARIANCE}, in format 5 ${PROBE}; ${REMEDY}`,
    );
  }
  if (names.includes(COVARIANCE) !== hasCovariance(metadata)) {
    throw new StatisticsError(
      `format of ${path}`,
      format,
      `${COVARIANCE} makes a file one of format 3 or 5; ${REMEDY}`,
    );
  }
  if (names.includes(PROBE) !== hasProbe(metadata)) {
    throw new StatisticsError(
      `format of ${path}`,
      format,
      `${PROBE} makes a file one of format 5; ${REMEDY}`,
    );
  }
  const terms = metadata.learned?.terms ?? [];
  if (LEARNED.some((name) => names.includes(name) !== terms.length > 0)) {
    const remedy = `goes with ${LEARNED.join(" and ")}, all or none; ${REMEDY}`;
    throw new StatisticsError(`learned of ${path}`, terms.join(", "), remedy);
  }
  if (terms.includes("expected") && !hasCovariance(metadata)) {
    throw new StatisticsError(
      `learned.terms of ${path}`,
      terms.join(", "),
      `expected needs ${COVARIANCE}; ${REMEDY}`,
    );
  }
  if (terms.includes("probe") !== hasProbe(metadata)) {
    throw new StatisticsError(
      `learned.terms of ${path}`,
      terms.join(", "),
      `probe and ${PROBE} go together; ${REMEDY}`,
    );
  }
  const units = file.tensors.get(PROBE)?.shape.at(-1);
  const shapes = shapesOf(metadata, rotary.dim / 2, unitsOf(units));
  const read = (name: TensorName): Float32Array => {
    const shape = shapes(name);
    const info = file.tensors.get(name);
    if (info?.dtype !== "F32" || info.shape.join() !== shape.join()) {
      const found = `${info?.dtype} [${info?.shape}]`;
      throw new StatisticsError(`${name} of ${path}`, found, `must be F32 [${shape}]; ${REMEDY}`);
    }
    return floats(file.bytes(name));
  };
  const tensors: StatisticsTensors = {
    q_mean_real: read("q_mean_real"),
    q_mean_imag: read("q_mean_imag"),
    q_abs_mean: read("q_abs_mean"),
    inv_freq: read("inv_freq"),
  };
  for (const name of OPTIONAL) if (names.includes(name)) tensors[name] = read(name);
  return tensors;
}

/** Throws StatisticsError unless covariances fit the other statistics, up to rounding. */
function verifyCovariance(tensors: StatisticsTensors, path: string): void {
  const { q_mean_real: re, q_mean_imag: im, q_abs_mean: abs, q_covariance: covariance } = tensors;
  if (covariance === undefined) return;
  const refuse = (found: string) => {
    throw new StatisticsError(`${COVARIANCE} of ${path}`, found, `impossible; ${REMEDY}`);
  };
  for (let i = 0; i < abs.length; i++) {
    const at = (part: number) => covariance[part * abs.length + i] as number;
    const [real, imag, both] = [at(0), at(1), at(2)];
    if (real < 0 || imag < 0) refuse("a negative variance");
    if (Math.abs(both) > Math.sqrt(real * imag) * 1.001 + 1e-6) {
      refuse("a covariance larger than its variances allow");
    }
    // E|q|² is at least (E|q|)².
    const size = Math.hypot(re[i] as number, im[i] as number, Math.sqrt(real + imag));
    if ((abs[i] as number) > size * 1.001 + 1e-6) refuse("variances smaller than q_abs_mean allows");
  }
}

function verify(tensors: StatisticsTensors, metadata: StatisticsMetadata, path: string): void {
  const found = digest(tensors);
  if (found !== metadata.sha256) {
    throw new StatisticsError(`sha256 of ${path}`, found, `the file says ${metadata.sha256}; ${REMEDY}`);
  }
  const { q_mean_real: real, q_mean_imag: imag, q_abs_mean: abs, inv_freq: inverse } = tensors;
  for (const name of [...TENSORS, ...OPTIONAL]) {
    if (tensors[name]?.every(Number.isFinite) === false) {
      throw new StatisticsError(`${name} of ${path}`, "not finite", REMEDY);
    }
  }
  // The length of a mean is at most the mean of lengths; what breaks that was never measured.
  if (abs.some((a, i) => Math.hypot(real[i] as number, imag[i] as number) > a * 1.001 + 1e-6)) {
    throw new StatisticsError(
      `q_abs_mean of ${path}`,
      "smaller than |q_mean|",
      `impossible for means; ${REMEDY}`,
    );
  }
  verifyCovariance(tensors, path);
  if (tensors.learned_share?.some((v) => v < 0 || v > 1)) {
    throw new StatisticsError(`learned_share of ${path}`, "outside [0, 1]", REMEDY);
  }
  const own = rotaryFrequencies(metadata.identity.rotary as RotaryParameters);
  const near = (a: number, b: number) => Math.abs(a - b) <= 1e-5 * b;
  const scaling = metadata.model.rotary?.attentionScaling ?? 0;
  if (!near(scaling, own.attentionScaling) || !inverse.every((v, f) => near(v, own.inverse[f] as number))) {
    throw new StatisticsError(
      `inv_freq of ${path}`,
      "other frequencies",
      `not of its own parameters; ${REMEDY}`,
    );
  }
}

/** Reads the metadata only, without verifying the tensors. */
export function readStatisticsMetadata(path: string): StatisticsMetadata {
  return withSafetensors(path, (file) => readMetadata(file, path));
}

/** Reads and verifies a statistics file. Throws StatisticsError for anything damaged, truncated or of another kind. */
export function loadStatistics(path: string): { metadata: StatisticsMetadata; tensors: StatisticsTensors } {
  return withSafetensors(path, (file) => {
    const metadata = readMetadata(file, path);
    const tensors = readTensors(file, metadata, path);
    verify(tensors, metadata, path);
    return { metadata, tensors };
  });
}

/** Throws StatisticsError, with both fingerprints, unless statistics belong to the model. */
export function checkStatistics(metadata: StatisticsMetadata, model: ModelGeometry, path: string): void {
  const own = metadata.model;
  const remedy = "run `triattn calibrate` on the model served";
  const made = `${path} was made for ${own.name}, but the model served, ${model.name}, has`;
  if (own.fingerprint !== model.fingerprint) {
    const fields = ["layers", "queryHeads", "kvHeads", "headDim", "rotary"] as const;
    const differ = fields
      .filter((f) => JSON.stringify(own[f]) !== JSON.stringify(model[f]))
      .map((f) => `${f} ${JSON.stringify(own[f])} and ${JSON.stringify(model[f])}`);
    const what = differ.join("; ") || "hidden or vocabulary size, or scaling";
    throw new StatisticsError(
      "fingerprint",
      own.fingerprint,
      `${made} fingerprint ${model.fingerprint} (${what}); ${remedy}`,
    );
  }
  if (own.weights !== null && model.weights !== null && own.weights !== model.weights) {
    throw new StatisticsError(
      "weights",
      own.weights,
      `${made} the same geometry (fingerprint ${model.fingerprint}) and other weights (${model.weights}); ${remedy}`,
    );
  }
}

/** Writes a statistics file whole or not at all, and verifies it before it appears. */
export function saveStatistics(
  path: string,
  tensors: StatisticsTensors,
  model: ModelGeometry,
  identity: ModelIdentity,
  origin: { tokens: number | null; source: string; license: string; created_by: string },
  learned: LearnedSelection | null = null,
): StatisticsMetadata {
  const present = [...TENSORS, ...OPTIONAL].flatMap((name): [TensorName, Float32Array][] => {
    const tensor = tensors[name];
    return tensor === undefined ? [] : [[name, tensor]];
  });
  const metadata: StatisticsMetadata = {
    format: tensors.learned_probe
      ? STATISTICS_FORMAT
      : tensors.q_covariance
        ? 3
        : present.length > TENSORS.length
          ? 2
          : 1,
    model,
    identity: { ...identity },
    sha256: digest(tensors),
    ...origin,
    learned,
  };
  const shapes = shapesOf(metadata, tensors.inv_freq.length, unitsOf(probeUnits(model, tensors)));
  const data = encodeSafetensors(
    present.map(([name, tensor]) => [name, shapes(name), tensor]),
    { triattn: JSON.stringify(metadata) },
  );
  writeAtomically(path, data, (temporary) => loadStatistics(temporary));
  return metadata;
}
