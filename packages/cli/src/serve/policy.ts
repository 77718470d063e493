import { existsSync, readFileSync } from "node:fs";
import {
  ConfigError,
  parsePolicy,
  policyFromReference,
  preset,
  StatisticsError,
  StatisticsLibrary,
} from "@triattn/control";
import type { PolicyDocument, PolicyInput } from "@triattn/protocol";

export interface PolicyOptions {
  readonly model: string;
  /** A preset's name, a JSON file, or a document. */
  readonly policy?: string | PolicyInput | undefined;
  readonly budget?: number | undefined;
  readonly interval?: number | undefined;
  /** A statistics file, or the name of one that this machine has. */
  readonly statistics?: string | undefined;
}

export interface ResolvedPolicy {
  readonly policy: PolicyDocument;
  /** Where it came from, for people to read. */
  readonly source: string;
  /** Path of the statistics file; null when none is known and none is needed. */
  readonly statistics: string | null;
  readonly warnings: readonly string[];
}

const DEFAULT = "triattention";
const SWITCH = "ENABLE_TRIATTENTION";

function readDocument(path: string): PolicyInput {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new ConfigError("policy", path, `cannot be read (${(error as NodeJS.ErrnoException).code})`, {
      cause: error,
    });
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new ConfigError("policy", path, `is not JSON (${(error as Error).message})`, { cause: error });
  }
}

/** A policy by its preset's name, its file, or as JSON. Throws ConfigError. */
function named(text: string): PolicyDocument {
  if (text.trimStart().startsWith("{")) {
    try {
      return parsePolicy(JSON.parse(text));
    } catch (error) {
      if (error instanceof SyntaxError)
        throw new ConfigError("policy", text, `is not JSON (${error.message})`);
      throw error;
    }
  }
  if (/[/\\]|\.json$/.test(text)) return parsePolicy(readDocument(text));
  try {
    return preset(text);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    if (existsSync(text)) return parsePolicy(readDocument(text));
    throw new ConfigError("policy", text, `${error.remedy}, or a JSON file`);
  }
}

type Found = {
  policy: PolicyDocument;
  source: string;
  statistics?: string | undefined;
  warnings: readonly string[];
};

function find(given: PolicyOptions["policy"], environment: NodeJS.ProcessEnv): Found {
  const none: readonly string[] = [];
  if (given !== undefined) {
    if (typeof given !== "string")
      return { policy: parsePolicy(given), source: "a document", warnings: none };
    return { policy: named(given), source: given, warnings: none };
  }
  const variable = environment.TRIATTN_POLICY?.trim();
  if (variable) return { policy: named(variable), source: "TRIATTN_POLICY", warnings: none };
  const reference = policyFromReference(environment);
  if (reference !== undefined) return { ...reference, source: "TRIATTN_RUNTIME_*" };
  const base = preset(DEFAULT);
  if (environment[SWITCH]?.trim()) {
    return {
      policy: { ...base, budget: 0 },
      source: SWITCH,
      warnings: [`${SWITCH} is off: nothing is compressed`],
    };
  }
  return { policy: base, source: "the default", warnings: none };
}

/** Whether a policy scores with statistics of the model's queries. */
export function needsStatistics({ budget, terms }: PolicyDocument): boolean {
  return budget > 0 && terms.some(({ kind }) => kind === "trig" || kind === "norm");
}

function findStatistics(policy: PolicyDocument, model: string, named: string | undefined): string | null {
  const library = new StatisticsLibrary();
  if (named !== undefined) return library.use(named, model).entry.path;
  try {
    return library.lookup(model).entry.path;
  } catch (error) {
    // A policy that needs them may still follow while the engine runs; it is refused then, if they are still missing.
    if (error instanceof StatisticsError && !needsStatistics(policy)) return null;
    throw error;
  }
}

/**
 * The policy to start with and its statistics: what was asked for; else TRIATTN_POLICY; else the reference plugin's
 * variables; else the preset `triattention`. Throws ConfigError, StatisticsError or ModelError.
 */
export function resolvePolicy(
  options: PolicyOptions,
  environment: NodeJS.ProcessEnv = process.env,
): ResolvedPolicy {
  const found = find(options.policy, environment);
  const changes = {
    ...(options.budget === undefined ? {} : { budget: options.budget }),
    ...(options.interval === undefined ? {} : { interval: options.interval }),
  };
  const policy = parsePolicy({ ...found.policy, ...changes });
  const statistics =
    options.statistics ?? found.statistics ?? (environment.TRIATTN_STATS?.trim() || undefined);
  return {
    policy,
    source: found.source,
    statistics: findStatistics(policy, options.model, statistics),
    warnings: found.warnings,
  };
}

/** Throws ConfigError for a budget that no cache of such blocks can keep; the engine checks it once more. */
export function checkBudget({ budget, pin }: PolicyDocument, blockSize: number): void {
  const least = pin.sinks + pin.window + blockSize;
  if (budget > 0 && budget < least) {
    const parts = `${pin.sinks} sinks + a window of ${pin.window} + one block of ${blockSize} tokens`;
    throw new ConfigError("budget", budget, `at least ${least} (${parts}), or 0 to never compress`);
  }
}
