import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import type { ModelGeometry } from "@triattn/protocol";
import { ModelError } from "./errors.ts";
import { type Config, canonicalRotary, type RotaryParameters, rotaryFrequencies } from "./rotary.ts";
import { weightsDigest } from "./weights.ts";

/** What a model's fingerprint is taken over. */
export interface ModelIdentity {
  headDim: number;
  hiddenSize: number;
  kvHeads: number;
  layers: number;
  queryHeads: number;
  rotary: RotaryParameters | null;
  vocabSize: number;
}

// Types whose configuration classes fill these in with a number of their own, not with the general rule.
const OWN_HEAD_DIM = /^(qwen3|gpt_oss|gemma|glm|ernie4_5|seed_oss|helium)/;
const MULTI_HEAD = ["llama", "gpt_neox", "gptj", "codegen", "phi", "phi3"];

// kernels/triattn/rotary.py has the same lists.
const HALF = new Set(
  (
    "apertus arcee gemma gemma2 gemma3 gemma3_text gpt_neox gpt_oss granite granitemoe llama mistral mixtral " +
    "nemotron olmo olmo2 olmo3 olmoe phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 stablelm starcoder2"
  ).split(" "),
);
const INTERLEAVED = new Set("codegen cohere ernie4_5 ernie4_5_moe glm glm4 gptj helium".split(" "));

function decimal(value: number): string {
  if (!Number.isFinite(value)) throw new ModelError("number", String(value), "has no canonical form");
  if (Number.isInteger(value)) return BigInt(value).toString();
  const [digits = "", exponent] = String(value).split("e-");
  if (exponent === undefined) return digits;
  const [whole = "", fraction = ""] = digits.replace("-", "").split(".");
  return `${value < 0 ? "-" : ""}0.${"0".repeat(Number(exponent) - 1)}${whole}${fraction}`;
}

/** The JSON text that fingerprints are taken over: sorted keys, no spaces, shortest decimals. */
export function canonicalJson(value: unknown): string {
  if (typeof value === "number") return decimal(value);
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  if (typeof value === "object" && value !== null) {
    const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
    return `{${entries.map(([key, item]) => `${JSON.stringify(key)}:${canonicalJson(item)}`).join(",")}}`;
  }
  return JSON.stringify(value);
}

/** First 32 hexadecimal digits of the SHA-256 of the canonical JSON of an identity. */
export function fingerprint(identity: ModelIdentity | Record<string, unknown>): string {
  return createHash("sha256").update(canonicalJson(identity)).digest("hex").slice(0, 32);
}

function count(config: Config, field: string, fallback?: number): number {
  const value = config[field] ?? fallback;
  if (typeof value !== "number" || !Number.isInteger(value) || value < 1) {
    const remedy =
      "must be one positive whole number for all layers; unsupported model or damaged config.json";
    throw new ModelError(field, value ?? null, remedy);
  }
  return value;
}

function textConfig(config: Config): Config {
  return (config.text_config as Config | undefined) ?? config;
}

/** Identity of a model from its config.json. Throws ModelError for what is missing: nothing is guessed. */
export function modelIdentity(whole: Config): ModelIdentity {
  const config = textConfig(whole);
  const type = String(config.model_type);
  const queryHeads = count(config, "num_attention_heads");
  const hiddenSize = count(config, "hidden_size");
  const headDim = count(
    config,
    "head_dim",
    OWN_HEAD_DIM.test(type) ? undefined : Math.floor(hiddenSize / queryHeads),
  );
  const kvHeads = count(config, "num_key_value_heads", MULTI_HEAD.includes(type) ? queryHeads : undefined);
  if (queryHeads % kvHeads !== 0) {
    const remedy = `does not divide num_attention_heads = ${queryHeads}`;
    throw new ModelError("num_key_value_heads", kvHeads, remedy);
  }
  return {
    headDim,
    hiddenSize,
    kvHeads,
    layers: count(config, "num_hidden_layers"),
    queryHeads,
    rotary: canonicalRotary(config, headDim),
    vocabSize: count(config, "vocab_size"),
  };
}

/** Which elements of a head are rotated together, which is a matter of the architecture's code. */
export function rotaryPairing(whole: Config): "half" | "interleaved" {
  const type = textConfig(whole).model_type;
  if (HALF.has(String(type))) return "half";
  if (INTERLEAVED.has(String(type))) return "interleaved";
  const remedy = "not known which rotary pairing it uses (half or interleaved); unsupported model";
  throw new ModelError("model_type", type ?? null, remedy);
}

/** Geometry as it goes over the wire and into statistics; `directory` holds the weights, where there are any. */
export function modelGeometry(config: Config, name: string, directory: string | null): ModelGeometry {
  const identity = modelIdentity(config);
  const rotary = identity.rotary as RotaryParameters;
  return {
    name,
    fingerprint: fingerprint(identity),
    weights: directory === null ? null : weightsDigest(directory),
    layers: identity.layers,
    queryHeads: identity.queryHeads,
    kvHeads: identity.kvHeads,
    headDim: identity.headDim,
    rotary: {
      type: rotary.type,
      theta: rotary.theta,
      dim: rotary.dim,
      attentionScaling: rotaryFrequencies(rotary).attentionScaling,
      pairing: rotaryPairing(config),
    },
  };
}

/** A model's configuration, from its directory or from the path of a config.json. */
export function readConfig(path: string): { config: Config; directory: string; name: string } {
  const file = path.endsWith(".json") ? path : join(path, "config.json");
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    const reason = (error as NodeJS.ErrnoException).code ?? String(error);
    throw new ModelError("model", path, `${file} cannot be read (${reason}); give a model directory`);
  }
  let config: unknown;
  try {
    config = JSON.parse(text);
  } catch (error) {
    throw new ModelError("model", file, `is not JSON (${(error as Error).message}); get the file again`);
  }
  if (typeof config !== "object" || config === null || Array.isArray(config)) {
    throw new ModelError("model", file, "is not a JSON object; get the file again");
  }
  const directory = resolve(file, "..");
  const own = (config as Config)._name_or_path;
  const name = typeof own === "string" && own !== "" ? own : basename(directory);
  return { config: config as Config, directory, name };
}
