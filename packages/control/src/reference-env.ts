import type { PolicyDocument } from "@triattn/protocol";
import {
  type PolicyInput,
  type ReferenceEnvironment,
  type ReferenceRow,
  referenceEnvironment,
} from "@triattn/protocol";
import { ConfigError } from "./errors.ts";
import { parsePolicy } from "./policy.ts";

/** What the reference plugin's variables say. */
export interface ReferenceSettings {
  readonly policy: PolicyDocument;
  /** SPARSE_STATS_PATH. */
  readonly statistics: string | undefined;
  /** Variables that are set and have no effect, each with the reason. */
  readonly warnings: readonly string[];
}

const TRUE = ["1", "true", "yes", "on"];
const FALSE = ["0", "false", "no", "off"];

type Scalar = string | number | boolean | null;
type Term = { kind: string; [field: string]: Scalar };
type Document = { terms: Term[]; [field: string]: unknown };

/**
 * The policy that `TRIATTN_RUNTIME_*` and `ENABLE_TRIATTENTION` ask for, or undefined when none of
 * them is set or compression is switched off. What a variable does not say keeps the reference's
 * default. The twin of kernels/triattn/reference_env.py; both are held to test/vectors/reference_env.json.
 *
 * Throws ConfigError, naming the variable, for a value that cannot be used.
 */
export function policyFromReference(
  environment: Readonly<Record<string, string | undefined>>,
): ReferenceSettings | undefined {
  const table: ReferenceEnvironment = referenceEnvironment;
  const variables = new Map<string, string>();
  for (const [name, value] of Object.entries(environment)) {
    if (name.startsWith(table.prefix) && value?.trim()) variables.set(name, value.trim());
  }
  const switched = environment[table.switch]?.trim();
  const enabled = switched ? boolean(table.switch, switched) : undefined;
  if (enabled === false || (enabled === undefined && variables.size === 0)) return undefined;

  const document = structuredClone(table.base) as unknown as Document;
  const warnings: string[] = [];
  let statistics: string | undefined;
  for (const row of table.rows) {
    const name = table.prefix + row.variable;
    const text = variables.get(name);
    if (text === undefined) continue;
    if (row.type === "string") statistics = text;
    else if (row.type === "integer") assign(document, row.field, integer(name, text));
    else if (row.type === "ignored") {
      if (!row.silent.some((silent) => same(text, silent))) {
        warnings.push(`${name}=${text} has no effect: ${row.reason}`);
      }
    } else {
      for (const [field, value] of Object.entries(chosen(name, text, row, document))) {
        assign(document, field, value);
      }
    }
  }
  const known = new Set(table.rows.map((row) => table.prefix + row.variable));
  for (const name of [...variables.keys()].sort()) {
    if (!known.has(name)) warnings.push(`${name} is not known and has no effect`);
  }
  return { policy: complete(document, table, variables), statistics, warnings };
}

function complete(
  document: Document,
  table: ReferenceEnvironment,
  variables: ReadonlyMap<string, string>,
): PolicyDocument {
  try {
    return parsePolicy(document as unknown as PolicyInput);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    for (const row of table.rows) {
      const name = table.prefix + row.variable;
      const value = variables.get(name);
      if ("field" in row && error.field === `policy.${row.field}` && value !== undefined) {
        throw new ConfigError(name, value, error.remedy);
      }
    }
    throw error;
  }
}

function boolean(name: string, text: string): boolean {
  const lowered = text.toLowerCase();
  if (TRUE.includes(lowered)) return true;
  if (FALSE.includes(lowered)) return false;
  throw new ConfigError(name, text, "true or false");
}

function integer(name: string, text: string): number {
  if (!/^-?\d{1,15}$/.test(text)) throw new ConfigError(name, text, "a whole number");
  return Number(text);
}

function same(text: string, silent: string): boolean {
  for (const words of [TRUE, FALSE]) {
    if (words.includes(silent)) return words.includes(text.toLowerCase());
  }
  return text === silent;
}

function chosen(
  name: string,
  text: string,
  row: Extract<ReferenceRow, { type: "boolean" | "choice" }>,
  document: Document,
): Readonly<Record<string, Scalar>> {
  const key = row.type === "boolean" ? String(boolean(name, text)) : text.toLowerCase();
  const refused = row.refused !== undefined && Object.hasOwn(row.refused, key) ? row.refused[key] : undefined;
  if (refused !== undefined) throw new ConfigError(name, text, refused);
  const assignments = Object.hasOwn(row.set, key) ? row.set[key] : undefined;
  if (assignments === undefined) {
    throw new ConfigError(name, text, `one of ${Object.keys(row.set).join(", ")}`);
  }
  for (const [field, value] of Object.entries(row.when ?? {})) {
    if (document[field] !== value) return {};
  }
  return assignments;
}

/** `a.b` is a path; `terms.KIND.FIELD` addresses the term of that kind; null takes a term out. */
function assign(document: Document, field: string, value: Scalar): void {
  const path = field.split(".");
  const [first = "", second = "", third = ""] = path;
  if (first === "terms") {
    if (value === null) document.terms = document.terms.filter((term) => term.kind !== second);
    for (const term of document.terms) {
      if (term.kind === second && value !== null) term[third] = value;
    }
    return;
  }
  let target: Record<string, unknown> = document;
  for (const step of path.slice(0, -1)) target = target[step] as Record<string, unknown>;
  target[path.at(-1) ?? ""] = value;
}
