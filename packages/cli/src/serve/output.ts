import { FieldError } from "@triattn/control";
import { DEFAULT_HTTP_PORT, type PolicyDocument } from "@triattn/protocol";
import { EngineDied, ExitCode, exitCodeOf } from "../errors.ts";
import { backendOf } from "./backends.ts";
import type { EngineExit, Stream } from "./engine-process.ts";
import type { ServePlan } from "./prepare.ts";
import type { Served } from "./serve.ts";

/** JSON of anything, integers of 64 bits included. */
export function toJson(value: unknown, indent?: number): string {
  return JSON.stringify(value, (_key, item) => (typeof item === "bigint" ? Number(item) : item), indent);
}

/** An argument as a shell would want it. */
export function quote(argument: string): string {
  return /^[\w@%+=:,./-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", "'\\''")}'`;
}

/** A plan as data: what `--dry-run --json` prints, and the `starting` event. */
export function describe(plan: ServePlan): Record<string, unknown> {
  return {
    model: plan.model,
    backend: plan.backend,
    engine: plan.engine,
    command: [plan.engine.python, ...plan.args],
    environment: plan.variables,
    url: plan.url ?? null,
    policy: plan.policy,
    policySource: plan.source,
    rules: plan.rules,
    pressure: plan.pressure ?? null,
    statistics: plan.statistics,
    warnings: plan.warnings,
    listen: plan.link?.endpoint ?? null,
    dashboard:
      plan.http === undefined
        ? null
        : `${plan.http.host ?? "127.0.0.1"}:${plan.http.port ?? DEFAULT_HTTP_PORT}`,
  };
}

function policyLine(policy: PolicyDocument): string {
  const { name, budget, interval, pin, selection } = policy;
  if (budget === 0) return `${name}, budget 0: nothing is compressed`;
  const pinned = [pin.prompt ? "the prompt" : "", `${pin.sinks} sinks`, `a window of ${pin.window}`].filter(
    Boolean,
  );
  return `${name}, budget ${budget} tokens, a round every ${interval}, ${selection}, pinned: ${pinned.join(", ")}`;
}

/** A plan for people. */
export function explain(plan: ServePlan): string {
  const { engine, variables } = plan;
  const from = engine.distribution === null ? "" : ` (${engine.distribution})`;
  const shown = Object.entries(variables).map(([name, value]) => {
    if (value === undefined) return undefined;
    return `${name}=${name === "TRIATTN_POLICY" ? "(the policy)" : quote(value)}`;
  });
  const lines = [
    ["engine", `${backendOf(plan.backend).label} ${engine.version}${from}, Python ${engine.pythonVersion}`],
    ["command", [engine.python, ...plan.args].map(quote).join(" ")],
    ["environment", shown.filter((line) => line !== undefined).join(" ")],
    ["policy", `${policyLine(plan.policy)} (${plan.source})`],
    ...(plan.pressure === undefined
      ? []
      : [["pressure", `the budget moves from ${plan.pressure.min} to ${plan.pressure.max} tokens`]]),
    ...(plan.rules.length === 0 ? [] : [["rules", plan.rules.map(({ name }) => name).join(", ")]]),
    ["statistics", plan.statistics ?? "none"],
    ...(plan.url === undefined ? [] : [["address", plan.url]]),
  ];
  const text = lines.map(([name = "", value = ""]) => `${name.padEnd(11)} ${value}`);
  return [...text, ...plan.warnings.map((warning) => `warning     ${warning}`)].join("\n");
}

const LAST_LINES = 15;
const REASON = /\b(?:\w+\.)*([A-Z]\w*(?:Error|Exception): .*)/;

/** The errors that tracebacks in a log end with, first ones first, each once. */
export function reasons(log: readonly string[]): string[] {
  const found = log.flatMap((line) => REASON.exec(line)?.[1] ?? []);
  return [...new Set(found)].slice(0, 3);
}

/** An error for people: one clear line, and where the engine died, the end of its log. */
export function errorText(error: unknown): string {
  if (error instanceof EngineDied) {
    const shown = (lines: readonly string[]) => lines.map((line) => `  | ${line}`).join("\n");
    const said = reasons(error.log);
    const causes = said.length > 0 ? `; errors in its log:\n${shown(said)}\n` : "; ";
    return `${error.message}${causes}the last lines of its log:\n${shown(error.log.slice(-LAST_LINES))}`;
  }
  if (!(error instanceof Error)) return String(error);
  // Only what nobody foresaw needs to be looked for in the code.
  if (exitCodeOf(error) !== ExitCode.unexpected) return error.message;
  return error.stack ?? error.message;
}

/** An error as data. */
export function errorData(error: unknown): Record<string, unknown> {
  const message = error instanceof Error ? error.message : String(error);
  const fields =
    error instanceof FieldError ? { field: error.field, value: error.value, remedy: error.remedy } : {};
  const log =
    error instanceof EngineDied ? { errors: reasons(error.log), log: error.log.slice(-LAST_LINES) } : {};
  return { message, ...fields, ...log, exitCode: exitCodeOf(error) };
}

/** What `triattn serve` says while it runs. */
export interface Output {
  starting(plan: ServePlan): void;
  line(text: string, stream: Stream): void;
  ready(served: Served): void;
  stopping(signal: string): void;
  stopped(exit: EngineExit): void;
  error(error: unknown): void;
}

const note = (text: string) => process.stderr.write(`triattn: ${text.replaceAll("\n", "\ntriattn: ")}\n`);

/** Own notes go to stderr; the engine's lines go where it wrote them. */
export const textOutput: Output = {
  starting: (plan) => note(explain(plan)),
  line: (text, stream) => process[stream].write(`${text}\n`),
  ready: ({ url, controlPlane, dashboard }) => {
    const [engine] = controlPlane.engines();
    const cache = engine?.hello.cache;
    const size = cache === undefined ? "" : `, cache of ${cache.blocks} blocks of ${cache.blockSize} tokens`;
    note(`ready at ${url ?? "its socket"} (runner ${engine?.hello.engine.runner}${size})`);
    if (dashboard !== undefined) note(`dashboard at ${dashboard}`);
  },
  stopping: (signal) => note(`${signal}: stopping the engine (once more to kill it)`),
  stopped: ({ code, signal }) => note(`the engine ended (${signal ?? `exit code ${code}`})`),
  error: (error) => note(`error: ${errorText(error)}`),
};

/** One JSON object a line on stdout; the engine's lines go to stderr. */
export const jsonOutput: Output = {
  starting: (plan) => event("starting", describe(plan)),
  line: (text) => process.stderr.write(`${text}\n`),
  ready: ({ url, controlPlane, dashboard }) => {
    const { endpoint } = controlPlane;
    const engines = controlPlane.engines();
    event("ready", { url: url ?? null, endpoint, dashboard: dashboard ?? null, engines });
  },
  stopping: (signal) => event("stopping", { signal }),
  stopped: (exit) => event("stopped", { ...exit }),
  error: (error) => event("error", errorData(error)),
};

function event(name: string, data: Record<string, unknown>): void {
  process.stdout.write(`${toJson({ event: name, ...data })}\n`);
}
