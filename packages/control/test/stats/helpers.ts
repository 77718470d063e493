import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { FieldError } from "../../src/index.ts";
import { type ModelIdentity, modelGeometry, modelIdentity } from "../../src/stats/fingerprint.ts";
import { rotaryFrequencies } from "../../src/stats/rotary.ts";
import { type LearnedSelection, type StatisticsTensors, saveStatistics } from "../../src/stats/statistics.ts";

/** The model of fixtures/tiny_reference.pt: 2 layers of 4 query heads, 4 bands. */
export const tiny = {
  model_type: "llama",
  hidden_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 100,
  rope_theta: 10000,
};

/** What a file of torch.save holds in fixtures/tiny_reference.pt, and statistics made of it. */
export function tinyTensors(): StatisticsTensors {
  const base = [0, 10, 20, 30, 100, 110, 120, 130].flatMap((head) => [0, 1, 2, 3].map((band) => head + band));
  const { inverse } = rotaryFrequencies(identityOf(tiny).rotary as NonNullable<ModelIdentity["rotary"]>);
  return {
    q_mean_real: Float32Array.from(base),
    q_mean_imag: Float32Array.from(base, (v) => -v / 2),
    q_abs_mean: Float32Array.from(base, (v) => v * 1.5 + 1),
    inv_freq: inverse,
  };
}

export const identityOf = (config: Record<string, unknown>): ModelIdentity => modelIdentity(config);

const origin = { tokens: 100, source: "test", license: "", created_by: "test" };

/** Writes statistics of the tiny model. */
export function saveTiny(
  path: string,
  {
    name = "tiny",
    weights = null as string | null,
    tensors = tinyTensors(),
    config = tiny,
    learned = null as LearnedSelection | null,
  } = {},
): void {
  const model = { ...modelGeometry(config, name, null), weights };
  saveStatistics(path, tensors, model, identityOf(config), origin, learned);
}

/** A model directory with a config.json. */
export function modelDirectory(parent: string, name: string, config: object = tiny): string {
  const directory = join(parent, name);
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, "config.json"), JSON.stringify(config));
  return directory;
}

/** The FieldError that a function throws. */
export function errorOf(run: () => unknown): FieldError {
  try {
    run();
  } catch (error) {
    if (error instanceof FieldError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}
