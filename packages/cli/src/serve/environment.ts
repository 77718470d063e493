import { delimiter } from "node:path";
import type { PolicyDocument } from "@triattn/protocol";
import { type Backend, backendOf } from "./backends.ts";
import { TOKEN_VARIABLE } from "./dashboard.ts";

const PLUGIN = "triattn";

export interface EngineVariables {
  /** Directory of the Python package and its entry point. */
  readonly plugin: string;
  readonly policy: PolicyDocument;
  readonly statistics: string | null;
}

/** What an engine's environment has that this process's has not: set, or taken out (undefined). */
export function engineVariables(
  { plugin, policy, statistics }: EngineVariables,
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
    ...allowed(pluginsVariable, environment[pluginsVariable]),
  };
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
