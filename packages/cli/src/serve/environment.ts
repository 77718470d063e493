import { delimiter } from "node:path";
import { type PolicyDocument, queriesObserved, type Rule } from "@triattn/protocol";
import { type Backend, backendOf } from "./backends.ts";
import { TOKEN_VARIABLE } from "./dashboard.ts";
import { policiesOf } from "./policy.ts";

const PLUGIN = "triattn";
/** Most recent queries of each request that an engine keeps, though the policy that it starts with does not ask. */
const QUERIES = "TRIATTN_OBSERVED_QUERIES";

export interface EngineVariables {
  /** Directory of the Python package and its entry point. */
  readonly plugin: string;
  readonly policy: PolicyDocument;
  readonly rules?: readonly Rule[];
  readonly statistics: string | null;
}

/** What an engine's environment has that this process's has not: set, or taken out (undefined). */
export function engineVariables(
  { plugin, policy, rules = [], statistics }: EngineVariables,
  environment: NodeJS.ProcessEnv,
  { pluginsVariable }: Backend = backendOf("vllm"),
): Record<string, string | undefined> {
  const inherited = environment.PYTHONPATH;
  // The policy is in force already; the engine would name each of them as not read.
  const reference = Object.keys(environment).filter((name) => name.startsWith("TRIATTN_RUNTIME_"));
  return {
    ...Object.fromEntries(reference.map((name) => [name, undefined])),
    ENABLE_TRIATTENTION: undefined,
    // A secret of the control plane's.
    [TOKEN_VARIABLE]: undefined,
    PYTHONPATH: inherited ? plugin + delimiter + inherited : plugin,
    // Otherwise its log arrives late, and the last lines before a crash never.
    PYTHONUNBUFFERED: "1",
    // What the engine prepares for while it starts; the policy itself comes through the socket.
    TRIATTN_POLICY: JSON.stringify(policy),
    TRIATTN_STATS: statistics ?? undefined,
    ...keptQueries(policiesOf(rules), environment),
    ...allowed(pluginsVariable, environment[pluginsVariable]),
  };
}

/** Policies may come through the socket later, but memory for the queries that they observe is set aside at start-up. */
export function keptQueries(
  policies: readonly PolicyDocument[],
  environment: NodeJS.ProcessEnv,
): Record<string, string> {
  const most = Math.max(0, ...policies.map(queriesObserved));
  return most > Number(environment[QUERIES] ?? 0) ? { [QUERIES]: String(most) } : {};
}

/** VLLM_PLUGINS or SGLANG_PLUGINS, where it is set, lists the plugins that the engine loads. */
function allowed(variable: string, plugins: string | undefined): Record<string, string> {
  if (plugins === undefined) return {};
  const names = plugins.split(",").filter((name) => name !== "");
  return names.includes(PLUGIN) ? {} : { [variable]: [...names, PLUGIN].join(",") };
}

/** The whole environment: the inherited one with the changes made. */
export function withVariables(
  environment: NodeJS.ProcessEnv,
  changes: Readonly<Record<string, string | undefined>>,
): NodeJS.ProcessEnv {
  return Object.fromEntries(
    Object.entries({ ...environment, ...changes }).filter(([, value]) => value !== undefined),
  );
}
