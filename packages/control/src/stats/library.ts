import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import type { ModelGeometry } from "@triattn/protocol";
import { z } from "zod";
import { ModelError, StatisticsError } from "./errors.ts";
import { modelGeometry, readConfig } from "./fingerprint.ts";
import {
  checkStatistics,
  loadStatistics,
  readStatisticsMetadata,
  type StatisticsMetadata,
} from "./statistics.ts";

/** stats/index.json: what ships with triattn. */
export const StatisticsIndex = z.strictObject({
  format: z.literal(1),
  statistics: z.array(
    z.strictObject({
      name: z.string().regex(/^[a-z0-9][a-z0-9._-]*$/),
      file: z.string().regex(/^[a-z0-9][a-z0-9._-]*\.safetensors$/),
      models: z.array(z.string()).min(1).describe("Names on the Hugging Face hub."),
      fingerprint: z.string(),
      weights: z.string().nullable(),
      tokens: z.int().nullable(),
      source: z.string(),
      license: z.string(),
    }),
  ),
});
export type StatisticsIndex = z.infer<typeof StatisticsIndex>;

/** One file of a library. */
export interface StatisticsEntry extends Omit<StatisticsIndex["statistics"][number], "file"> {
  path: string;
  /** `shipped` with triattn, or in the `user`'s own folder, where `triattn calibrate` puts them. */
  origin: "shipped" | "user";
}

/** Why an entry was taken for a model. */
export interface StatisticsMatch {
  entry: StatisticsEntry;
  by: "path" | "name" | "weights";
  metadata: StatisticsMetadata;
  /** Null where the model's configuration is not on this machine; the engine checks again in any case. */
  model: ModelGeometry | null;
}

/** The folder that `triattn calibrate` writes to: `$XDG_DATA_HOME/triattn/stats`. */
export function userStatisticsDirectory(environment: NodeJS.ProcessEnv = process.env): string {
  return join(environment.XDG_DATA_HOME || join(homedir(), ".local", "share"), "triattn", "stats");
}

/** The folder of the statistics that ship with triattn: the nearest `stats/index.json` above this file. */
export function shippedStatisticsDirectory(start: string = import.meta.dirname): string | null {
  for (let at = start; ; at = dirname(at)) {
    const found = join(at, "stats");
    if (existsSync(join(found, "index.json"))) return found;
    if (dirname(at) === at) return null;
  }
}

function shipped(directory: string): StatisticsEntry[] {
  const path = join(directory, "index.json");
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw new StatisticsError(
      "index",
      path,
      `cannot be read (${(error as Error).message}); install triattn again`,
    );
  }
  const index = StatisticsIndex.safeParse(json);
  if (!index.success) throw new StatisticsError("index", path, z.prettifyError(index.error));
  return index.data.statistics.map(({ file, ...entry }) => ({
    ...entry,
    path: join(directory, file),
    origin: "shipped",
  }));
}

function users(directory: string): StatisticsEntry[] {
  if (!existsSync(directory)) return [];
  const files = readdirSync(directory).filter(
    (name) => name.endsWith(".safetensors") && !name.startsWith("."),
  );
  return files.sort().flatMap((file): StatisticsEntry[] => {
    const path = join(directory, file);
    const name = basename(file, ".safetensors");
    try {
      const { model, tokens, source, license } = readStatisticsMetadata(path);
      const { fingerprint, weights } = model;
      return [
        { name, path, models: [model.name], fingerprint, weights, tokens, source, license, origin: "user" },
      ];
    } catch {
      // A damaged file must not hide the others; `stats verify` says what is wrong with it.
      return [];
    }
  });
}

/** The directory of a model: as given, or of the hub's local cache; null where it is not on this machine. */
export function localModelDirectory(
  model: string,
  environment: NodeJS.ProcessEnv = process.env,
): string | null {
  if (existsSync(join(model, "config.json"))) return resolve(model);
  if (!/^[\w.-]+\/[\w.-]+$/.test(model)) return null;
  const home =
    environment.HF_HOME || join(environment.XDG_CACHE_HOME || join(homedir(), ".cache"), "huggingface");
  const hub = environment.HF_HUB_CACHE || join(home, "hub");
  const repository = join(hub, `models--${model.replaceAll("/", "--")}`);
  try {
    const revision = readFileSync(join(repository, "refs", "main"), "utf8").trim();
    const snapshot = join(repository, "snapshots", revision);
    return existsSync(join(snapshot, "config.json")) ? snapshot : null;
  } catch {
    return null;
  }
}

const tail = (name: string): string => (name.split("/").at(-1) ?? name).toLowerCase();

/** The statistics on this machine: those that ship with triattn and the user's own. */
export class StatisticsLibrary {
  readonly entries: StatisticsEntry[];
  private readonly environment: NodeJS.ProcessEnv;

  constructor(
    directories: { shipped?: string | null; user?: string | null } = {},
    environment: NodeJS.ProcessEnv = process.env,
  ) {
    this.environment = environment;
    const { shipped: own = shippedStatisticsDirectory(), user = userStatisticsDirectory(environment) } =
      directories;
    this.entries = [...(user === null ? [] : users(user)), ...(own === null ? [] : shipped(own))];
  }

  /** The model's geometry, where its configuration is on this machine. Throws ModelError. */
  geometry(model: string): ModelGeometry | null {
    const directory = localModelDirectory(model, this.environment);
    if (directory === null) {
      const found = statSync(model, { throwIfNoEntry: false });
      if (found?.isDirectory())
        throw new ModelError("model", model, "has no config.json; give a model's directory");
      // Anything else may be a name on the hub, or a file that only the engine can read.
      if (found === undefined && /^[./~]/.test(model)) {
        throw new ModelError(
          "model",
          model,
          "does not exist; give a model's directory or its name on the hub",
        );
      }
      return null;
    }
    const { config, name } = readConfig(directory);
    return modelGeometry(config, resolve(model) === directory ? name : model, directory);
  }

  /** A file by its path, or an entry by its name or its model's. Throws StatisticsError, naming what there is. */
  find(nameOrPath: string): StatisticsEntry | string {
    const lower = nameOrPath.toLowerCase();
    const entry = this.entries.find(({ name, models }) =>
      [name, ...models].some((n) => n.toLowerCase() === lower),
    );
    if (entry !== undefined) return entry;
    if (existsSync(nameOrPath)) return nameOrPath;
    const names = this.entries.map(({ name }) => name).join(", ") || "none";
    throw new StatisticsError(
      "stats",
      nameOrPath,
      `is neither a file nor known by name; known are: ${names}`,
    );
  }

  /** Verified statistics by path or name, checked against the model where that is on this machine. */
  use(nameOrPath: string, model: string): StatisticsMatch {
    const found = this.find(nameOrPath);
    const path = typeof found === "string" ? found : found.path;
    const { metadata } = loadStatistics(path);
    const geometry = this.geometry(model);
    if (geometry !== null) checkStatistics(metadata, geometry, path);
    if (typeof found !== "string") return { entry: found, by: "name", metadata, model: geometry };
    const { name, fingerprint, weights } = metadata.model;
    const { tokens, source, license } = metadata;
    const entry: StatisticsEntry = {
      name: basename(path, ".safetensors"),
      path: resolve(path),
      models: [name],
      fingerprint,
      weights,
      tokens,
      source,
      license,
      origin: "user",
    };
    return { entry, by: "path", metadata, model: geometry };
  }

  /**
   * Statistics for a model directory or hub name: those of the same weights, else those of the same name (and
   * fingerprint, where the model is on this machine). Statistics of another model with the same geometry are never
   * taken by themselves. Throws StatisticsError when there are none, naming such candidates.
   */
  lookup(model: string): StatisticsMatch {
    const geometry = this.geometry(model);
    const match = (entry: StatisticsEntry, by: "name" | "weights"): StatisticsMatch => {
      const { metadata } = loadStatistics(entry.path);
      if (geometry !== null) checkStatistics(metadata, geometry, entry.path);
      return { entry, by, metadata, model: geometry };
    };
    const fits = (e: StatisticsEntry) => geometry === null || e.fingerprint === geometry.fingerprint;
    const sameWeights = (e: StatisticsEntry) => e.weights !== null && e.weights === geometry?.weights;
    const named = (e: StatisticsEntry) => {
      // A directory is known by its last part only.
      const names = geometry === null ? [model] : [model, geometry.name, basename(resolve(model))];
      return e.models.some((own) =>
        names.some((n) =>
          n.includes("/") && geometry === null
            ? n.toLowerCase() === own.toLowerCase()
            : tail(n) === tail(own),
        ),
      );
    };
    const otherWeights = (e: StatisticsEntry) =>
      e.weights !== null && geometry?.weights != null && e.weights !== geometry.weights;
    const exact = this.entries.find((e) => fits(e) && sameWeights(e));
    if (exact !== undefined) return match(exact, "weights");
    const byName = this.entries.find((e) => fits(e) && named(e) && !otherWeights(e));
    if (byName !== undefined) return match(byName, "name");
    const similar = this.entries.filter((e) => fits(e) && geometry !== null).map((e) => e.name);
    const other = this.entries.find((e) => named(e));
    const note =
      geometry !== null && other !== undefined && !fits(other)
        ? ` (${other.name} has fingerprint ${other.fingerprint}, this model ${geometry.fingerprint})`
        : similar.length > 0
          ? ` (made for other weights of the same geometry: ${similar.join(", ")})`
          : "";
    throw new StatisticsError(
      "stats",
      `none for ${model}`,
      `no statistics belong to it${note}; run \`triattn calibrate ${model}\`, or choose a policy without trig, norm and expected terms`,
    );
  }
}
