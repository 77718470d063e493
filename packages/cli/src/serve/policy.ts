import { existsSync, readFileSync } from "node:fs";
import {
  ConfigError,
  hasCovariance,
  hasProbe,
  parsePolicy,
  parseRules,
  policyFromReference,
  preset,
  StatisticsError,
  StatisticsLibrary,
  type StatisticsMatch,
} from "@triattn/control";
import {
  allTerms,
  observes,
  type PolicyDocument,
  type PolicyInput,
  type PresetName,
  queriesObserved,
  type Rule,
  readsCovariance,
  readsProbe,
  readsStatistics,
} from "@triattn/protocol";
import type { Backend } from "./backends.ts";

export interface PolicyOptions {
  readonly model: string;
  /** A preset's name, a JSON file (a document, or `{"policy": …, "rules": […]}`), or a document. */
  readonly policy?: string | PolicyInput | undefined;
  /** Requests that the policy does not hold for; instead of those of the policy's file. */
  readonly rules?: readonly Rule[] | undefined;
  readonly budget?: number | undefined;
  readonly interval?: number | undefined;
  /** A statistics file, or the name of one that this machine has. */
  readonly statistics?: string | undefined;
}

export interface ResolvedPolicy {
  readonly policy: PolicyDocument;
  readonly rules: readonly Rule[];
  /** Where it came from, for people to read. */
  readonly source: string;
  /** Path of the statistics file; null when none is known and none is needed. */
  readonly statistics: string | null;
  readonly warnings: readonly string[];
}

const DEFAULT: PresetName = "auto";
const SWITCH = "ENABLE_TRIATTENTION";

function readDocument(path: string): unknown {
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

interface Document {
  readonly policy: PolicyDocument;
  readonly rules?: readonly Rule[] | undefined;
}

/** A document of a file: a policy, or `{"policy": …, "rules": […]}`. Throws ConfigError. */
function parseDocument(input: unknown): Document {
  const isObject = typeof input === "object" && input !== null && !Array.isArray(input);
  if (!isObject || !("policy" in input || "rules" in input))
    return { policy: parsePolicy(input as PolicyInput) };
  const {
    policy,
    rules = [],
    ...more
  } = input as { policy?: PolicyInput | PresetName; rules?: readonly Rule[] };
  const [unknown] = Object.keys(more);
  if (unknown !== undefined) {
    throw new ConfigError(unknown, Reflect.get(more, unknown), "a file with rules has policy and rules only");
  }
  const parsed = parsePolicy(policy ?? ({} as PolicyInput));
  return { policy: parsed, rules: parseRules(rules, parsed) };
}

/** A policy by its preset's name, its file, or as JSON. Throws ConfigError. */
function named(text: string): Document {
  if (text.trimStart().startsWith("{")) {
    try {
      return parseDocument(JSON.parse(text));
    } catch (error) {
      if (error instanceof SyntaxError)
        throw new ConfigError("policy", text, `is not JSON (${error.message})`);
      throw error;
    }
  }
  if (/[/\\]|\.json$/.test(text)) return parseDocument(readDocument(text));
  try {
    return { policy: preset(text) };
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    if (existsSync(text)) return parseDocument(readDocument(text));
    throw new ConfigError("policy", text, `${error.remedy}, or a JSON file`);
  }
}

type Found = Document & {
  source: string;
  statistics?: string | undefined;
  warnings: readonly string[];
};

function find(given: PolicyOptions["policy"], environment: NodeJS.ProcessEnv): Found {
  const none: readonly string[] = [];
  if (given !== undefined) {
    if (typeof given !== "string")
      return { policy: parsePolicy(given), source: "a document", warnings: none };
    return { ...named(given), source: given, warnings: none };
  }
  const variable = environment.TRIATTN_POLICY?.trim();
  if (variable) return { ...named(variable), source: "TRIATTN_POLICY", warnings: none };
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

/** Whether a policy cannot work without statistics of the model's queries. */
export function needsStatistics(policy: PolicyDocument): boolean {
  return needs(policy, readsStatistics);
}

/** Whether statistics of the model's queries change what a policy keeps. */
export function usesStatistics(policy: PolicyDocument): boolean {
  return policy.learned || allTerms(policy).some(readsStatistics);
}

function needs(policy: PolicyDocument, reads: typeof readsStatistics): boolean {
  return (
    policy.budget > 0 && policy.statistics === "required" && allTerms(policy).some((term) => reads(term))
  );
}

/** Tensors that some terms need and some statistics lack: who reads them, who has them, what they are. */
const PARTS = [
  [readsCovariance, hasCovariance, "covariances of the queries"],
  [readsProbe, hasProbe, "probe"],
] as const;

function checkParts(policies: readonly PolicyDocument[], model: string, found: StatisticsMatch): string {
  const { path } = found.entry;
  for (const [reads, has, what] of PARTS) {
    const policy = policies.find((each) => needs(each, reads));
    if (policy !== undefined && !has(found.metadata)) {
      const remedy = `has no ${what}, which policy ${policy.name} needs; run \`triattn calibrate ${model}\``;
      throw new StatisticsError("statistics", path, remedy);
    }
  }
  return path;
}

function findStatistics(
  policies: readonly PolicyDocument[],
  model: string,
  named: string | undefined,
): string | null {
  const library = new StatisticsLibrary();
  if (named !== undefined) return checkParts(policies, model, library.use(named, model));
  let found: StatisticsMatch;
  try {
    found = library.lookup(model);
  } catch (error) {
    // A policy that needs them may still follow while the engine runs; it is refused then, if they are still missing.
    if (error instanceof StatisticsError && !policies.some(needsStatistics)) return null;
    throw error;
  }
  return checkParts(policies, model, found);
}

/**
 * The policy to start with and its statistics: what was asked for; else TRIATTN_POLICY; else the reference plugin's
 * variables; else the preset `auto`. Throws ConfigError, StatisticsError or ModelError.
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
  const rules = parseRules(options.rules ?? found.rules ?? [], policy);
  const statistics =
    options.statistics ?? found.statistics ?? (environment.TRIATTN_STATS?.trim() || undefined);
  const path = findStatistics([policy, ...policiesOf(rules)], options.model, statistics);
  const without = path === null ? withoutStatistics(policy, options.model) : [];
  return {
    policy,
    rules,
    source: found.source,
    statistics: path,
    warnings: [...found.warnings, ...without],
  };
}

/** What a policy that can do without statistics does not do without them. */
function withoutStatistics({ name, budget, terms, statistics }: PolicyDocument, model: string): string[] {
  const left = terms.filter(readsStatistics).map(({ kind }) => kind);
  if (budget === 0 || statistics === "required" || left.length === 0) return [];
  const calibrate = `\`triattn calibrate ${model}\` makes them`;
  return [`no statistics of ${model}: policy ${name} goes without ${left.join(" and ")}; ${calibrate}`];
}

/** The policies of rules, which `parseRules` has written out. */
export function policiesOf(rules: readonly Rule[]): PolicyDocument[] {
  return rules.flatMap(({ policy }) => (policy === undefined ? [] : [policy as PolicyDocument]));
}

/** Throws ConfigError for a budget that no cache of such blocks can keep; the engine checks it once more. */
export function checkBudget(
  { policy, rules }: { policy: PolicyDocument; rules: readonly Rule[] },
  blockSize: number,
): void {
  checkBudgetOf("budget", policy.budget, policy, blockSize);
  for (const [index, rule] of rules.entries()) {
    const own = (rule.policy as PolicyDocument | undefined) ?? policy;
    checkBudgetOf(`rules.${index}.budget`, rule.budget ?? own.budget, own, blockSize);
  }
}

/** The same for one budget, whatever it is called. */
export function checkBudgetOf(
  field: string,
  budget: number,
  { pin }: PolicyDocument,
  blockSize: number,
): void {
  const least = pin.sinks + pin.window + blockSize;
  if (budget > 0 && budget < least) {
    const parts = `${pin.sinks} sinks + a window of ${pin.window} + one block of ${blockSize} tokens`;
    throw new ConfigError(field, budget, `at least ${least} (${parts}), or 0 to never compress`);
  }
}

/** Throws ConfigError for a policy that observes attention on an engine whose hooks keep no queries. */
export function checkObserved(
  { policy, rules }: { policy: PolicyDocument; rules: readonly Rule[] },
  { label, keepsQueries }: Pick<Backend, "label" | "keepsQueries">,
): void {
  const found = keepsQueries ? undefined : [policy, ...policiesOf(rules)].find(queriesObserved);
  if (found !== undefined) {
    const kind = allTerms(found).find(observes)?.kind;
    const remedy = `its term ${kind} needs recent queries, which triattn keeps in vLLM but not in ${label}; serve with --backend vllm, or use a policy without that term`;
    throw new ConfigError("policy", found.name, remedy);
  }
}
