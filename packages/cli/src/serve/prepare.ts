import { mkdtempSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ConfigError, checkPressure, type HttpOptions, type PressureOptions } from "@triattn/control";
import type { PolicyInput, Rule } from "@triattn/protocol";
import { EnvironmentError, onDisk } from "../errors.ts";
import { pluginDirectory } from "../package.ts";
import { BACKENDS, type Backend, type BackendName, backendOf } from "./backends.ts";
import { builtDashboard, type DashboardOptions, readDashboard } from "./dashboard.ts";
import { engineVariables } from "./environment.ts";
import { type EngineFlags, readEngineFlags, urlOf } from "./flags.ts";
import { type LinkOptions, type LinkPlan, readLink } from "./link.ts";
import { checkBudget, checkBudgetOf, checkObserved, type ResolvedPolicy, resolvePolicy } from "./policy.ts";
import { checkPort, freePort } from "./port.ts";
import { type EngineEnvironment, findEngine } from "./python.ts";

export interface ServeOptions extends DashboardOptions, LinkOptions {
  /** A model directory, or a name on the Hugging Face hub. */
  readonly model: string;
  /** A preset's name, a JSON file (a document, or `{"policy": …, "rules": […]}`), or a document. Default: `TRIATTN_POLICY`, `TRIATTN_RUNTIME_*`, or `triattention`. */
  readonly policy?: string | PolicyInput | undefined;
  /** Requests that the policy does not hold for; the first rule that matches decides. */
  readonly rules?: readonly Rule[] | undefined;
  /** Moves budgets with the pressure on the cache, inside bounds. Default: they stay as the policy says. */
  readonly pressure?: PressureOptions | undefined;
  /** Instead of the policy's: resident tokens of a request after a round; 0 never compresses. */
  readonly budget?: number | undefined;
  /** Instead of the policy's: a round fires at budget + interval resident tokens. */
  readonly interval?: number | undefined;
  /** A statistics file, or the name of one that this machine has. Default: those that belong to the model. */
  readonly statistics?: string | undefined;
  /** The engine. Default: vllm. */
  readonly backend?: BackendName | undefined;
  /** An interpreter, or an environment's directory. Default: the first with an engine, see `findEngine`. */
  readonly python?: string | undefined;
  /** Flags of the engine; they pass through untouched. `--port 0` takes a free port. */
  readonly engineFlags?: readonly string[] | undefined;
  /** Environment to start from. Default: this process's. */
  readonly environment?: NodeJS.ProcessEnv | undefined;
  /** Milliseconds from SIGTERM to SIGKILL when it is stopped. Default 20,000, and the engine's --shutdown-timeout. */
  readonly graceMs?: number | undefined;
}

/** Everything that is settled before anything starts. */
export interface ServePlan extends ResolvedPolicy {
  readonly model: string;
  readonly backend: BackendName;
  readonly engine: EngineEnvironment;
  /** Arguments of the interpreter. */
  readonly args: readonly string[];
  /** Set (or, where undefined, taken out) in the engine's environment, the control plane's address aside. */
  readonly variables: Readonly<Record<string, string | undefined>>;
  readonly environment: NodeJS.ProcessEnv;
  /** Where the engine will answer; undefined on a Unix socket. */
  readonly url: string | undefined;
  readonly graceMs: number;
  /** Bounds of budgets that move; undefined when they stay. */
  readonly pressure: PressureOptions | undefined;
  /** How the control plane serves HTTP; undefined when it does not. */
  readonly http: HttpOptions | undefined;
  /** Where the control plane listens for engines; undefined: a socket of its own. */
  readonly link: LinkPlan | undefined;
}

const NO_PAGE = "the dashboard's page is not built here: only the HTTP API and metrics are served";
const GRACE_MS = 20_000;
const TEMPORARY_BYTES = 16e6;

function blockSize(flags: EngineFlags, engine: EngineEnvironment, { block }: Backend): number {
  return flags.blockSize ?? block[engine.distribution ?? ""] ?? block.default;
}

/** The control plane's socket, and what the engine shares between its processes, lie in the temporary directory. */
async function checkDisk(): Promise<void> {
  const directory = tmpdir();
  await onDisk(directory, () => {
    const { bavail, bsize } = statfsSync(directory);
    if (bavail * bsize < TEMPORARY_BYTES) {
      throw new EnvironmentError(
        "disk",
        directory,
        "is full: free some space, or name another directory by TMPDIR",
      );
    }
    const probe = mkdtempSync(join(directory, "triattn-"));
    try {
      writeFileSync(join(probe, "probe"), "");
    } finally {
      rmSync(probe, { recursive: true, force: true });
    }
  });
}

/**
 * Checks everything that can be checked before the engine is up, and settles what will run. Starts nothing.
 * Throws ConfigError, StatisticsError, ModelError (what was asked for) or EnvironmentError (this machine).
 */
export async function prepare(options: ServeOptions): Promise<ServePlan> {
  const environment = options.environment ?? process.env;
  const { backend = "vllm" } = options;
  if (!BACKENDS.includes(backend)) throw new ConfigError("backend", backend, BACKENDS.join(" or "));
  const kind = backendOf(backend);
  if (options.model === "")
    throw new ConfigError("model", "", "a model directory, or a name on the Hugging Face hub");
  const given = readEngineFlags(options.engineFlags ?? [], kind);
  const asked = readDashboard(options, environment);
  const link = readLink(options, environment);
  const resolved = resolvePolicy(options, environment);
  const engine = await findEngine(options.python, environment, kind);
  const block = blockSize(given, engine, kind);
  if (options.pressure !== undefined) {
    checkPressure(options.pressure);
    for (const end of ["min", "max"] as const) {
      checkBudgetOf(`pressure.${end}`, options.pressure[end], resolved.policy, block);
    }
  }
  checkBudget(resolved, block);
  checkObserved(resolved, kind);
  await checkDisk();
  const flags = given.port === 0 ? { ...given, port: await freePort() } : given;
  await checkPort(flags);
  const http = asked && {
    ...asked,
    dashboardDirectory: asked.dashboardDirectory ?? (await builtDashboard()),
  };
  const plugin = await pluginDirectory();
  const { policy, statistics } = resolved;
  return {
    ...resolved,
    warnings: [...resolved.warnings, ...(http && http.dashboardDirectory === undefined ? [NO_PAGE] : [])],
    http,
    pressure: options.pressure,
    link,
    model: options.model,
    backend,
    engine,
    args: [
      ...engine.command,
      ...(engine.command.at(-1) === "serve" ? [options.model] : [kind.modelFlag, options.model]),
      ...withPort(options.engineFlags ?? [], given.port === 0 ? flags.port : undefined),
    ],
    variables: engineVariables({ plugin, policy, rules: resolved.rules, statistics }, environment, kind),
    environment,
    url: urlOf(flags),
    graceMs: options.graceMs ?? GRACE_MS + flags.shutdownSeconds * 1000,
  };
}

/** `--port 0` becomes the port taken: the engine's own choice would not be known here. */
function withPort(flags: readonly string[], port: number | undefined): readonly string[] {
  if (port === undefined) return flags;
  return flags.map((flag, i) => {
    if (flag === "--port=0") return `--port=${port}`;
    return flag === "0" && flags[i - 1] === "--port" ? String(port) : flag;
  });
}
