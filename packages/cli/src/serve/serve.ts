import { setTimeout as sleep } from "node:timers/promises";
import { type ControlPlane, createControlPlane } from "@triattn/control";
import type { Logger } from "pino";
import { type EngineDied, EnvironmentError, onDisk } from "../errors.ts";
import { backendOf } from "./backends.ts";
import { type EngineExit, EngineProcess, type EngineState, type Stream } from "./engine-process.ts";
import { withVariables } from "./environment.ts";
import { waitUntilHealthy } from "./health.ts";
import { reachable } from "./link.ts";
import { createLogger } from "./logger.ts";
import { prepare, type ServeOptions, type ServePlan } from "./prepare.ts";

/** An engine that serves under a control plane of its own. */
export interface Served {
  /** Base URL of the engine's OpenAI API: `${url}/v1/…`; undefined on a Unix socket. */
  readonly url: string | undefined;
  readonly plan: ServePlan;
  readonly controlPlane: ControlPlane;
  /** Where the dashboard is; undefined when it was not asked for. */
  readonly dashboard: string | undefined;
  readonly engine: {
    /** Of the process that guards the engine's. */
    readonly pid: number;
    readonly state: EngineState;
    /** The last lines it wrote. */
    readonly tail: readonly string[];
  };
  /**
   * Resolves when the engine answers requests and uses the policy. Rejects with EngineDied, with PolicyRefused when
   * the engine cannot use the policy, or with EnvironmentError when it runs without the plugin; it is stopped then.
   */
  readonly ready: Promise<void>;
  /** Resolves when the engine, all it started and the control plane are gone; never rejects. */
  readonly exited: Promise<EngineExit>;
  /** The error that the engine's end is, when nobody asked for it. */
  died(exit: EngineExit): EngineDied;
  /** Stops the engine in order, then the control plane. */
  stop(): Promise<EngineExit>;
  /** Kills the engine and all it started, at once. */
  kill(): Promise<EngineExit>;
}

export interface StartOptions {
  /** What the engine writes, line by line. */
  readonly onLine?: (line: string, stream: Stream) => void;
  /** Where the control plane logs. Default: warnings and errors to stderr. */
  readonly logger?: Logger | undefined;
  /** How long an engine that answers may take to say that it uses the policy. Default 15,000. */
  readonly pluginMs?: number;
}

/** An engine waits for its policy before it serves; one that answers without having asked has no plugin. */
const PLUGIN_MS = 15_000;

/** Starts what was prepared. Resolves as soon as the engine's process runs; `ready` says when it serves. */
export async function start(plan: ServePlan, options: StartOptions = {}): Promise<Served> {
  const controlPlane = await onDisk("the temporary directory", () =>
    createControlPlane({
      policy: plan.policy,
      rules: plan.rules,
      statistics: plan.statistics,
      logger: options.logger ?? createLogger(),
      ...(plan.pressure === undefined ? {} : { pressure: plan.pressure }),
      ...(plan.http === undefined ? {} : { http: plan.http }),
      ...(plan.link === undefined ? {} : { endpoint: plan.link.endpoint }),
      ...(plan.link?.curve === undefined ? {} : { curve: plan.link.curve }),
    }),
  );
  let engine: EngineProcess;
  try {
    engine = await EngineProcess.start(
      {
        python: plan.engine.python,
        args: plan.args,
        environment: withVariables(plan.environment, {
          ...plan.variables,
          ...plan.link?.secrets,
          TRIATTN_SOCKET: reachable(controlPlane.endpoint),
        }),
        graceMs: plan.graceMs,
      },
      options.onLine ?? (() => {}),
    );
  } catch (error) {
    await controlPlane.close();
    throw error;
  }
  const exited = engine.exited.then(async (exit) => {
    await controlPlane.close();
    return exit;
  });
  const ready = becomeReady(plan, controlPlane, engine, options.pluginMs ?? PLUGIN_MS);
  // Whoever does not wait for it learns of its failure by `exited`.
  ready.catch(() => {});
  return {
    url: plan.url,
    plan,
    controlPlane,
    dashboard: controlPlane.url,
    engine,
    ready,
    exited,
    died: (exit) => engine.died(exit),
    async stop() {
      await engine.stop();
      return exited;
    },
    async kill() {
      await engine.kill();
      return exited;
    },
  };
}

async function becomeReady(
  plan: ServePlan,
  controlPlane: ControlPlane,
  engine: EngineProcess,
  pluginMs: number,
): Promise<void> {
  const gone = new AbortController();
  const ended = engine.exited.then((exit): never => {
    throw engine.died(exit);
  });
  const connected = controlPlane.waitForEngine().then(() => {});
  const up = plan.url === undefined ? connected : waitUntilHealthy(plan.url, gone.signal);
  try {
    // The engine may refuse its first policy long before it is up.
    const refused = connected.then(() => up);
    await Promise.race([ended, refused, up]);
    await Promise.race([ended, connected, withoutPlugin(plan, pluginMs, gone.signal)]);
    engine.ready();
  } catch (error) {
    await engine.stop();
    throw error;
  } finally {
    gone.abort();
  }
}

async function withoutPlugin(plan: ServePlan, ms: number, signal: AbortSignal): Promise<void> {
  await sleep(ms, undefined, { signal }).catch(() => {});
  if (signal.aborted) return;
  throw new EnvironmentError(
    "engine",
    `${backendOf(plan.backend).label} ${plan.engine.version}`,
    "it runs, but has not loaded the plugin, so nothing would be compressed: see its log for why",
  );
}

/** Prepares and starts an engine under a control plane; resolves when it serves. Throws what `prepare` and `ready` do. */
export async function serve(options: ServeOptions & StartOptions): Promise<Served> {
  const served = await start(await prepare(options), options);
  await served.ready;
  return served;
}
