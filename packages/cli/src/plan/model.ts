import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import {
  localModelDirectory,
  ModelError,
  readConfig,
  StatisticsLibrary,
  shippedStatisticsDirectory,
} from "@triattn/control";
import { type Parameters, parameters } from "./parameters.ts";
import { shapes } from "./shapes.ts";

/** A model's config.json, or the part of it that describes the language model. */
export type Config = Record<string, unknown>;

/** What sizes and times follow from. */
export interface Model {
  readonly name: string;
  readonly layers: number;
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly hidden: number;
  readonly vocabulary: number;
  readonly intermediate: number;
  /** Window in tokens of each layer; null for full attention. */
  readonly windows: readonly (number | null)[];
  readonly maxPositions: number;
  readonly parameters: Parameters;
  /** bfloat16, fp8, int4, … as stored. */
  readonly dtype: WeightDtype;
  /** Bytes of the weights' files; null where they are not on this machine. */
  readonly fileBytes: number | null;
  /** Why triattn refuses to compress it; null: it does not. */
  readonly refused: string | null;
}

/** Bytes a weight of the quantised matrices, scales included. */
export const weightDtypes = {
  float32: 4,
  bfloat16: 2,
  float16: 2,
  fp8: 1,
  int8: 1,
  int4: 0.53,
  mxfp4: 0.53,
} as const;
export type WeightDtype = keyof typeof weightDtypes;

const isObject = (value: unknown): value is Config => typeof value === "object" && value !== null;

function whole(config: Config, field: string, fallback?: number): number {
  const value = config[field] ?? fallback;
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 1) {
    throw new ModelError(field, value ?? null, "must be one positive whole number; correct the config.json");
  }
  return value;
}

/** The configuration of a directory, a config.json, a name of the hub's cache, or one that ships with triattn. */
function locate(model: string): { config: Config; directory: string | null; name: string } {
  if (/\.json$/.test(model)) return { ...readConfig(model), directory: null };
  const directory = localModelDirectory(model);
  if (directory !== null) {
    const { config, name } = readConfig(directory);
    return { config, directory, name: existsSync(model) ? name : model };
  }
  const lower = model.toLowerCase();
  const known = new StatisticsLibrary({ user: null }).entries;
  const entry = known.find(({ name, models }) => [name, ...models].some((n) => n.toLowerCase() === lower));
  const configs = shippedStatisticsDirectory();
  if (entry !== undefined && configs !== null) {
    const { config } = readConfig(join(configs, "configs", `${entry.name}.json`));
    return { config, directory: null, name: entry.models[0] ?? entry.name };
  }
  const shape = Object.entries(shapes).find(([name]) =>
    [name.toLowerCase(), basename(name).toLowerCase()].includes(lower),
  );
  if (shape !== undefined) return { config: shape[1], directory: null, name: shape[0] };
  const names = [...known.map(({ name }) => name), ...Object.keys(shapes)].join(", ");
  throw new ModelError(
    "model",
    model,
    `is not on this machine; give a directory, a config.json, or one of ${names}`,
  );
}

function windows(config: Config, layers: number): (number | null)[] {
  const window = typeof config.sliding_window === "number" ? config.sliding_window : null;
  const none = Array<number | null>(layers).fill(null);
  if (window === null || config.use_sliding_window === false) return none;
  const types = config.layer_types;
  if (Array.isArray(types)) return none.map((_, i) => (types[i] === "sliding_attention" ? window : null));
  const pattern = config.sliding_window_pattern;
  if (typeof pattern === "number" && pattern > 1) {
    return none.map((_, i) => ((i + 1) % pattern === 0 ? null : window));
  }
  const type = String(config.model_type);
  if (type === "gpt_oss" || type === "gemma2") return none.map((_, i) => (i % 2 === 0 ? window : null));
  if (type.startsWith("qwen")) {
    const first = Number(config.max_window_layers ?? layers);
    return none.map((_, i) => (i >= first ? window : null));
  }
  return none.map(() => window);
}

function storedAs(config: Config): WeightDtype {
  const quantised = config.quantization_config;
  if (isObject(quantised)) {
    const text = JSON.stringify(quantised).toLowerCase();
    if (text.includes("mxfp4")) return "mxfp4";
    if (/"(?:bits|num_bits|w_bit)":4/.test(text)) return "int4";
    if (text.includes("fp8") || /"type":"float".*"num_bits":8|"num_bits":8.*"type":"float"/.test(text))
      return "fp8";
    if (/"(?:bits|num_bits|w_bit)":8/.test(text)) return "int8";
    const method = quantised.quant_method ?? null;
    throw new ModelError(
      "quantization_config",
      method,
      "not known here; name the size of a weight by --weights-dtype",
    );
  }
  const dtype = config.dtype ?? config.torch_dtype ?? "bfloat16";
  return Object.hasOwn(weightDtypes, String(dtype)) ? (String(dtype) as WeightDtype) : "bfloat16";
}

function weightFiles(directory: string | null): number | null {
  if (directory === null) return null;
  const index = join(directory, "model.safetensors.index.json");
  if (existsSync(index)) {
    const total = (JSON.parse(readFileSync(index, "utf8")) as { metadata?: { total_size?: unknown } })
      .metadata?.total_size;
    if (typeof total === "number") return total;
  }
  const files = readdirSync(directory).filter((name) => name.endsWith(".safetensors"));
  if (files.length === 0) return null;
  return files.reduce((sum, name) => sum + statSync(join(directory, name)).size, 0);
}

/** Reads a model's numbers; nothing is downloaded. Throws ModelError for what is missing or not understood. */
export function readModel(model: string, dtype?: WeightDtype): Model {
  const { config: outer, directory, name } = locate(model);
  const config = isObject(outer.text_config) ? outer.text_config : outer;
  if (config.kv_lora_rank !== undefined && config.kv_lora_rank !== null) {
    throw new ModelError(
      "kv_lora_rank",
      config.kv_lora_rank,
      "multi-head latent attention: triattn does not compress it, and its sizes are not planned here",
    );
  }
  const layers = whole(config, "num_hidden_layers");
  const queryHeads = whole(config, "num_attention_heads");
  const hidden = whole(config, "hidden_size");
  const kvHeads = whole(config, "num_key_value_heads", queryHeads);
  const headDim = whole(config, "head_dim", Math.floor(hidden / queryHeads));
  const vocabulary = whole(config, "vocab_size");
  const perLayer = windows(config, layers);
  const windowed = perLayer.filter((window) => window !== null).length;
  return {
    name,
    layers,
    queryHeads,
    kvHeads,
    headDim,
    hidden,
    vocabulary,
    intermediate: whole(config, "intermediate_size"),
    windows: perLayer,
    maxPositions: whole(config, "max_position_embeddings", 2 ** 20),
    parameters: parameters(config, { layers, queryHeads, kvHeads, headDim, hidden, vocabulary }),
    dtype: dtype ?? storedAs({ ...outer, ...config }),
    fileBytes: dtype === undefined ? weightFiles(directory) : null,
    refused:
      windowed === 0 ? null : `${windowed} of ${layers} layers have sliding windows, which triattn refuses`,
  };
}
