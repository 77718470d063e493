import { ModelError } from "./errors.ts";

/** Canonical rotary parameters: `type`, `theta`, `dim`, and those that the type reads, as in the configuration. */
export type RotaryParameters = { type: string; theta: number; dim: number } & Record<
  string,
  string | number | boolean
>;

/** A model's config.json, or the part of it that describes the language model. */
export type Config = Record<string, unknown>;

const REQUIRED = Symbol("required");

/** kernels/triattn/rotary.py is the same table; test/vectors/fingerprints.json holds both to it. */
const PARAMETERS: Record<string, Record<string, number | boolean | null | typeof REQUIRED>> = {
  default: {},
  linear: { factor: REQUIRED },
  llama3: {
    factor: REQUIRED,
    low_freq_factor: REQUIRED,
    high_freq_factor: REQUIRED,
    original_max_position_embeddings: REQUIRED,
  },
  yarn: {
    factor: REQUIRED,
    original_max_position_embeddings: REQUIRED,
    attention_factor: null,
    beta_fast: 32,
    beta_slow: 1,
    mscale: null,
    mscale_all_dim: null,
    truncate: true,
  },
};
const NAMES = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
const INERT = ["original_max_position_embeddings", "finetuned"];
const UNSUPPORTED: Record<string, string> = {
  kv_lora_rank: "multi-head latent attention",
  mrope_section: "multi-axis rotary positions",
  dual_chunk_attention_config: "dual chunk attention",
};
/** Bases that config.json of these types often leaves out, fixed by their published configuration classes. */
const THETA: Record<string, number> = { llama: 10000, gemma: 10000, gemma2: 10000 };

const isObject = (value: unknown): value is Config =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function number(field: string, value: unknown): number {
  if (typeof value !== "number" || !Number.isFinite(value) || value <= 0) {
    throw new ModelError(field, value, "must be a number above 0; correct the model's config.json");
  }
  return value;
}

function firstOf(config: Config, names: string[]): unknown {
  return names.map((name) => config[name]).find((value) => value !== undefined && value !== null);
}

/** The rope dictionary in force, from `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling`. */
function parameters(config: Config): Config {
  let found: unknown = config.rope_parameters ?? config.rope_scaling ?? {};
  if (!isObject(found)) {
    throw new ModelError("rope_parameters", found, "must be an object; correct the model's config.json");
  }
  if (Object.values(found).some(isObject)) {
    // One set a layer type: only full-attention layers are ever compressed, so theirs counts.
    const types = Object.keys(found);
    found = found.full_attention;
    if (!isObject(found)) {
      throw new ModelError("rope_parameters", types, "no entry for full_attention layers; unsupported model");
    }
  }
  const result = { ...(found as Config) };
  result.rope_theta ??=
    firstOf(config, ["rope_theta", "rotary_emb_base"]) ?? THETA[String(config.model_type)] ?? null;
  return result;
}

function rotaryDim(config: Config, found: Config, headDim: number): number {
  const factor =
    found.partial_rotary_factor ??
    firstOf(config, ["partial_rotary_factor", "rotary_pct", "rotary_emb_fraction"]);
  const explicit = config.rotary_dim ?? undefined;
  let dim = headDim;
  if (factor !== undefined && factor !== null) {
    dim = Math.trunc(headDim * number("partial_rotary_factor", factor));
  }
  if (explicit !== undefined) {
    if (factor !== undefined && factor !== null && explicit !== dim) {
      const remedy = `disagrees with partial_rotary_factor = ${factor} (${dim} of ${headDim})`;
      throw new ModelError("rotary_dim", explicit, remedy);
    }
    dim = explicit as number;
  }
  if (!Number.isInteger(dim) || dim % 2 !== 0 || dim < 2 || dim > headDim) {
    throw new ModelError(
      "rotary dim",
      dim,
      `must be even and between 2 and the head's ${headDim} dimensions`,
    );
  }
  return dim;
}

/** Canonical rotary parameters of a configuration, never guessed: throws ModelError for what is missing. */
export function canonicalRotary(config: Config, headDim: number): RotaryParameters {
  for (const [name, what] of Object.entries(UNSUPPORTED)) {
    if (config[name]) throw new ModelError(name, config[name], `${what} is not supported`);
  }
  const layers = config.no_rope_layers;
  if (Array.isArray(layers) && layers.some((rotary) => !rotary)) {
    const remedy = "models with layers that have no rotary embedding are not supported";
    throw new ModelError("no_rope_layers", layers, remedy);
  }
  const found = parameters(config);
  const type = String(found.rope_type ?? found.type ?? "default");
  const known = PARAMETERS[type];
  if (known === undefined) {
    const names = Object.keys(PARAMETERS).join(", ");
    throw new ModelError("rope_type", type, `unsupported rotary scaling; supported are ${names}`);
  }
  if (found.rope_theta === null) {
    const remedy = "the base of the rotary frequencies is missing; add it to the model's config.json";
    throw new ModelError("rope_theta", null, remedy);
  }
  const result: RotaryParameters = {
    type,
    theta: number("rope_theta", found.rope_theta),
    dim: rotaryDim(config, found, headDim),
  };
  for (const [name, value] of Object.entries(found)) {
    if (name in known || NAMES.includes(name) || INERT.includes(name)) continue;
    if (value === null || value === false) continue;
    const remedy = `unknown parameter of rotary type ${type}; not supported`;
    throw new ModelError(`rope_parameters.${name}`, value, remedy);
  }
  for (const [name, fallback] of Object.entries(known)) {
    let value: unknown = found[name] ?? fallback;
    if (name === "original_max_position_embeddings") {
      // transformers' standardization: the model's own field wins, its maximum length stands in for a missing one.
      value = config[name] ?? found[name] ?? config.max_position_embeddings ?? REQUIRED;
    }
    if (value === REQUIRED) {
      const remedy = `rotary type ${type} needs it; add it to config.json`;
      throw new ModelError(`rope_parameters.${name}`, null, remedy);
    }
    if (name === "truncate") result[name] = Boolean(value);
    else if (value !== null) result[name] = number(`rope_parameters.${name}`, value);
  }
  return result;
}

const f32 = Math.fround;

/** YaRN, arXiv 2309.00071: bands between `beta_fast` and `beta_slow` rotations are interpolated. */
function yarn(rotary: RotaryParameters, periods: number[]): [number[], number] {
  const { dim, theta } = rotary;
  const factor = Number(rotary.factor);
  const context = Number(rotary.original_max_position_embeddings);
  const mscale = (scale: number, m = 1) => (scale <= 1 ? 1 : 0.1 * m * Math.log(scale) + 1);
  let scaling = rotary.attention_factor as number | undefined;
  if (scaling === undefined) {
    const { mscale: m, mscale_all_dim: all } = rotary;
    scaling = m && all ? mscale(factor, Number(m)) / mscale(factor, Number(all)) : mscale(factor);
  }
  const bound = (turns: number) => (dim * Math.log(context / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  let low = bound(Number(rotary.beta_fast));
  let high = bound(Number(rotary.beta_slow));
  if (rotary.truncate) [low, high] = [Math.floor(low), Math.ceil(high)];
  [low, high] = [Math.max(low, 0), Math.min(high, dim - 1)];
  if (low === high) high += 0.001;
  const values = periods.map((period, f) => {
    const ramp = Math.min(1, Math.max(0, (f - low) / (high - low)));
    return f32((1 / (factor * period)) * ramp + (1 / period) * (1 - ramp));
  });
  return [values, scaling];
}

function llama3(rotary: RotaryParameters, values: number[]): number[] {
  const factor = Number(rotary.factor);
  const low = Number(rotary.low_freq_factor);
  const high = Number(rotary.high_freq_factor);
  const context = Number(rotary.original_max_position_embeddings);
  return values.map((value) => {
    const turns = (context * value) / (2 * Math.PI);
    if (turns < low) return f32(value / factor);
    if (turns > high) return value;
    const smooth = (turns - low) / (high - low);
    return f32((1 - smooth) * (value / factor) + smooth * value);
  });
}

/**
 * Rotary frequencies after scaling, as transformers computes them: radians a token, one for each of the
 * F = dim / 2 bands, float32 up to its last bit; and the factor on cos and sin.
 */
export function rotaryFrequencies(rotary: RotaryParameters): {
  inverse: Float32Array;
  attentionScaling: number;
} {
  const bands = Array.from({ length: rotary.dim / 2 }, (_, f) => f);
  const periods = bands.map((f) => f32(rotary.theta ** f32((2 * f) / rotary.dim)));
  let values = periods.map((period) => f32(1 / period));
  let attentionScaling = 1;
  if (rotary.type === "linear") values = values.map((value) => f32(value / Number(rotary.factor)));
  else if (rotary.type === "llama3") values = llama3(rotary, values);
  else if (rotary.type === "yarn") [values, attentionScaling] = yarn(rotary, periods);
  return { inverse: Float32Array.from(values), attentionScaling };
}
