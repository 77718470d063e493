import { z } from "zod";
import { StatisticsError } from "./errors.ts";
import { modelGeometry, modelIdentity, readConfig } from "./fingerprint.ts";
import { TorchTensor } from "./pickle.ts";
import { type RotaryParameters, rotaryFrequencies } from "./rotary.ts";
import { type StatisticsMetadata, type StatisticsTensors, saveStatistics } from "./statistics.ts";
import { readTorchFile } from "./torch-file.ts";

const KINDS = ["q_mean_real", "q_mean_imag", "q_abs_mean"] as const;

/** What the file says of its model, as far as it says it. */
const ReferenceMetadata = z.looseObject({
  rope_style: z.string().optional(),
  rope_type: z.string().optional(),
  rope_theta: z.number().optional(),
  head_dim: z.number().optional(),
  num_attention_heads: z.number().optional(),
  num_kv_heads: z.number().optional(),
  num_layers: z.number().optional(),
  model_name: z.string().optional(),
});

export interface ImportOptions {
  /** Statistics of the reference implementation of TriAttention: a file of torch.save. */
  file: string;
  /** The model's directory, or its config.json: the file itself has no geometry and no rotary parameters. */
  config: string;
  /** File to write, or what names it by the model's name. */
  out: string | ((modelName: string) => string);
  /** The model's name; the file's own, or else the directory's, when absent. */
  name?: string;
  source?: string;
  license?: string;
}

/** Throws unless what the file says of its model agrees with the configuration. */
function agree(said: z.infer<typeof ReferenceMetadata>, own: Record<string, unknown>, config: string): void {
  for (const [field, expected] of Object.entries(own)) {
    const value = said[field];
    if (value !== undefined && value !== expected) {
      throw new StatisticsError(
        field,
        value,
        `${config} has ${expected}; give the configuration of the model measured`,
      );
    }
  }
}

/**
 * Imports statistics of the reference implementation (.pt) as a statistics file of triattn, written whole or not
 * at all. Throws ModelError or StatisticsError.
 */
export async function importReference(options: ImportOptions): Promise<StatisticsMetadata> {
  const { file } = options;
  const { config, name: own } = readConfig(options.config);
  const identity = modelIdentity(config);
  const rotary = identity.rotary as RotaryParameters;
  const torch = await readTorchFile(file);
  const value = torch.value;
  const stats = value instanceof Map ? value.get("stats") : undefined;
  const described = value instanceof Map ? (value.get("metadata") ?? new Map()) : undefined;
  const parsed = ReferenceMetadata.safeParse(described instanceof Map ? Object.fromEntries(described) : null);
  if (!(stats instanceof Map) || !parsed.success) {
    throw new StatisticsError(
      "file",
      file,
      "has no `metadata` and `stats` as the reference implementation writes them",
    );
  }
  const said = parsed.data;
  const model = modelGeometry(config, options.name ?? said.model_name ?? own, null);
  agree(
    said,
    {
      rope_style: model.rotary?.pairing,
      rope_type: rotary.type,
      rope_theta: rotary.theta,
      head_dim: model.headDim,
      num_attention_heads: model.queryHeads,
      num_kv_heads: model.kvHeads,
      num_layers: model.layers,
    },
    options.config,
  );
  const bands = rotary.dim / 2;
  const size = model.layers * model.queryHeads * bands;
  const tensors: StatisticsTensors = {
    q_mean_real: new Float32Array(size),
    q_mean_imag: new Float32Array(size),
    q_abs_mean: new Float32Array(size),
    inv_freq: rotaryFrequencies(rotary).inverse,
  };
  const two = (n: number) => String(n).padStart(2, "0");
  for (let layer = 0; layer < model.layers; layer++) {
    for (let head = 0; head < model.queryHeads; head++) {
      const key = `layer${two(layer)}_head${two(head)}`;
      const entry: unknown = stats.get(key);
      for (const kind of KINDS) {
        const tensor = entry instanceof Map ? entry.get(kind) : undefined;
        if (!(tensor instanceof TorchTensor) || tensor.shape.length !== 1 || tensor.shape[0] !== bands) {
          const found = tensor instanceof TorchTensor ? `[${tensor.shape}]` : "missing";
          throw new StatisticsError(
            `${key}.${kind} of ${file}`,
            found,
            `should be ${bands} numbers for this model`,
          );
        }
        tensors[kind].set(torch.numbers(tensor), (layer * model.queryHeads + head) * bands);
      }
    }
  }
  if (stats.size !== model.layers * model.queryHeads) {
    const remedy = `${options.config} has ${model.layers} layers of ${model.queryHeads} heads; give the model's own`;
    throw new StatisticsError(`heads in ${file}`, stats.size, remedy);
  }
  const out = typeof options.out === "string" ? options.out : options.out(model.name);
  return saveStatistics(out, tensors, model, identity, {
    tokens: null,
    source: options.source ?? `imported from ${file.split(/[\\/]/).at(-1)}`,
    license: options.license ?? "",
    created_by: "triattn stats import",
  });
}
