import type { PolicyInput, PresetName, Rule } from "@triattn/protocol";
import { type Logger, pino } from "pino";
import type { CurveOptions } from "./curve.ts";
import { Drops } from "./drops.ts";
import { EngineLink } from "./engine-link.ts";
import { ConfigError, ControlPlaneClosed, EngineTimeout, PolicyRefused } from "./errors.ts";
import { EventStream } from "./event-stream.ts";
import type { LinkLimits } from "./flood.ts";
import type { HttpOptions, HttpServer } from "./http/options.ts";
import type { Metrics } from "./metrics/metrics.ts";
import { parsePolicy } from "./policy.ts";
import { type PolicyContent, type PolicyRevision, PolicyStore } from "./policy-store.ts";
import { PressureDriver, type PressureOptions, type PressureView } from "./pressure/driver.ts";
import { Rollout } from "./rollout.ts";
import { parseRules } from "./rules.ts";
import { Tallies } from "./tallies.ts";
import type { ControlCounters, ControlEvent, ControlEventOf, EngineView, PolicyResult } from "./types.ts";
import { Watches, type Watching, type WatchOptions } from "./watches.ts";

export interface ControlPlaneOptions {
  /** The first policy. Without one, engines wait for `setPolicy`. */
  readonly policy?: PolicyInput | PresetName;
  /** Requests that the policy does not hold for; the first rule that matches decides. */
  readonly rules?: readonly Rule[];
  /** Path of the statistics file, as the engine sees it. */
  readonly statistics?: string | null;
  /** Moves budgets with the pressure on the cache, inside bounds. Default: they stay as the policy says. */
  readonly pressure?: PressureOptions;
  /** Serves the HTTP API, metrics and the dashboard. Default: not. */
  readonly http?: HttpOptions;
  /** ipc:///path in a directory of your own, or tcp://host:port with `curve`. Default: ipc in a new private directory. */
  readonly endpoint?: string;
  readonly curve?: CurveOptions;
  /** What one engine may send; what is more is dropped, and counted as `flooding`. */
  readonly limits?: LinkLimits;
  /** Default: warnings and errors to stderr. */
  readonly logger?: Logger;
  /** How long `setPolicy` waits for engines. Default 30,000 ms. */
  readonly ackTimeoutMs?: number;
  /** An engine not heard of for so long is taken as gone. Default 15,000 ms; engines report every second. */
  readonly silenceMs?: number;
  /** Items kept for a consumer of `events()`; beyond it the oldest are dropped. Default 10,000. */
  readonly eventCapacity?: number;
}

export interface SetPolicyOptions {
  /** Requests that the policy does not hold for. Default: as before. */
  readonly rules?: readonly Rule[];
  /** Path of the statistics file, as the engine sees it; null for none. Default: as before. */
  readonly statistics?: string | null;
}

/** Owns the policy and speaks with the engines that serve under it. */
export interface ControlPlane {
  /** Address that engines connect to (TRIATTN_SOCKET). */
  readonly endpoint: string;
  /** The policy in force; undefined before the first. */
  readonly policy: PolicyRevision | undefined;
  /** What the pressure controller has chosen; undefined where there is none. */
  readonly pressure: PressureView | undefined;
  /** Base URL of the HTTP API; undefined where it is not served. */
  readonly url: string | undefined;
  /** Revisions that were in force, oldest first, the current one last; the newest hundred. */
  history(): readonly PolicyRevision[];
  /**
   * Replaces the policy, its rules and statistics while engines run. Resolves when all connected engines have acknowledged it,
   * with the step at which each began to use it; without engines, at once. Calls take effect in order.
   *
   * Rejects with ConfigError (the document), PolicyRefused (an engine cannot use it; the policy before is
   * in force again, under a new revision) or PolicyUnacknowledged (no answer in time).
   */
  setPolicy(policy: PolicyInput | PresetName, options?: SetPolicyOptions): Promise<PolicyResult>;
  /**
   * Puts an earlier revision in force again, under a new number; the one before the current by default.
   * Rejects with ConfigError when it is not in `history()`, otherwise as `setPolicy` does.
   */
  rollback(revision?: number): Promise<PolicyResult>;
  /** Asks engines for reports that cost them something, which `events()` then yields, until it is closed. */
  watch(options: WatchOptions): Watching;
  /** Engines that are connected, or were. */
  engines(): readonly EngineView[];
  counters(): ControlCounters;
  /** Everything as metrics in Prometheus' text format, and its content type. */
  metrics(): Promise<{ readonly contentType: string; readonly text: string }>;
  /**
   * What happens from now on, of the named types only, or all; each call has a queue of its own, which drops the
   * oldest when its consumer is too slow, and says so by `overflow`. Ends with `close`.
   */
  events<T extends ControlEvent["type"] = ControlEvent["type"]>(
    ...types: readonly T[]
  ): AsyncIterableIterator<ControlEventOf<T>, undefined>;
  /**
   * An engine that is connected and uses the policy. Rejects with PolicyRefused when an engine refuses the
   * first policy it is given, with EngineTimeout after `timeoutMs` (default: never).
   */
  waitForEngine(options?: { readonly timeoutMs?: number }): Promise<EngineView>;
  /** Stops listening and removes the socket. Engines go on with the policy they have. */
  close(): Promise<void>;
}

/** Starts a control plane. Throws ConfigError for the policy, EndpointError for the address. */
export async function createControlPlane(options: ControlPlaneOptions = {}): Promise<ControlPlane> {
  const policy = options.policy === undefined ? undefined : parsePolicy(options.policy);
  const store = new PolicyStore();
  if (policy !== undefined) {
    const rules = parseRules(options.rules ?? [], policy);
    store.replace({ policy, statistics: options.statistics ?? null, rules });
  }
  const logger = options.logger ?? pino({ name: "triattn", level: "warn" }, pino.destination(2));
  const drops = new Drops(logger);
  const plane = new Plane(options, store, drops, logger);
  plane.link = await EngineLink.open({
    endpoint: options.endpoint,
    curve: options.curve,
    limits: options.limits,
    store,
    drops,
    logger,
    silenceMs: options.silenceMs ?? 15_000,
    publish: (event) => plane.publish(event),
  });
  try {
    if (options.pressure !== undefined) plane.regulate(options.pressure);
    if (options.http === undefined) return plane;
    // Only whoever serves it pays for loading it.
    const { serveHttp } = await import("./http/server.ts");
    plane.http = await serveHttp(plane, options.http, logger);
  } catch (error) {
    await plane.close();
    throw error;
  }
  return plane;
}

interface Waiter {
  resolve(engine: EngineView): void;
  reject(error: Error): void;
}

class Plane implements ControlPlane {
  link!: EngineLink;
  http: HttpServer | undefined;
  readonly #options: ControlPlaneOptions;
  readonly #store: PolicyStore;
  readonly #drops: Drops;
  readonly #logger: Logger;
  readonly #streams = new Map<EventStream<ControlEvent>, (type: string) => boolean>();
  readonly #waiters = new Set<Waiter>();
  readonly #watches = new Watches(
    () => this.link.engines.connected().map(({ id }) => id),
    (engineId, watch) => this.link.send(engineId, watch),
  );
  /** The rollout under way, and the revision from which an answer is an answer to it. */
  #rollout: { readonly target: number; readonly rollout: Rollout } | undefined;
  #queue: Promise<unknown> = Promise.resolve();
  readonly #tallies = new Tallies();
  #metrics: Promise<Metrics> | undefined;
  #driver: PressureDriver | undefined;
  #overflowed = 0;
  #closing: Promise<void> | undefined;

  constructor(options: ControlPlaneOptions, store: PolicyStore, drops: Drops, logger: Logger) {
    this.#options = options;
    this.#store = store;
    this.#drops = drops;
    this.#logger = logger;
  }

  get endpoint(): string {
    return this.link.address;
  }

  get policy(): PolicyRevision | undefined {
    return this.#store.current;
  }

  get pressure(): PressureView | undefined {
    return this.#driver?.view();
  }

  /** Throws ConfigError for bounds that cannot be. */
  regulate(options: PressureOptions): void {
    this.#driver = new PressureDriver(this, options, this.#logger, (content) =>
      this.#enqueue(() => content, true).then(() => {}),
    );
  }

  get url(): string | undefined {
    return this.http?.url;
  }

  history(): readonly PolicyRevision[] {
    return this.#store.history;
  }

  watch(options: WatchOptions): Watching {
    return this.#watches.add(options);
  }

  engines(): readonly EngineView[] {
    return this.link.engines.all().map((engine) => engine.view());
  }

  counters(): ControlCounters {
    const engines = this.link.engines.all();
    return {
      engines: Object.fromEntries(
        engines.flatMap(({ id, counters }) => (counters === undefined ? [] : [[id, counters]])),
      ),
      link: { ...this.link.counts, framesDropped: this.#drops.counts, itemsOverflowed: this.#overflowed },
    };
  }

  async metrics(): Promise<{ contentType: string; text: string }> {
    this.#metrics ??= import("./metrics/metrics.ts").then(({ Metrics }) => new Metrics(this, this.#tallies));
    const metrics = await this.#metrics;
    return { contentType: metrics.contentType, text: await metrics.text() };
  }

  events<T extends ControlEvent["type"]>(
    ...types: readonly T[]
  ): AsyncIterableIterator<ControlEventOf<T>, undefined> {
    const stream = new EventStream<ControlEvent>(
      this.#options.eventCapacity ?? 10_000,
      (dropped) => ({ type: "overflow", dropped }),
      (ended) => this.#streams.delete(ended),
    );
    const wanted: ReadonlySet<string> = new Set(types);
    if (this.#closing === undefined)
      this.#streams.set(stream, (type) => wanted.size === 0 || wanted.has(type));
    else stream.end();
    return stream as EventStream<ControlEvent> as AsyncIterableIterator<ControlEventOf<T>, undefined>;
  }

  async setPolicy(input: PolicyInput | PresetName, options: SetPolicyOptions = {}): Promise<PolicyResult> {
    const policy = parsePolicy(input);
    if (options.rules !== undefined) parseRules(options.rules, policy);
    return this.#enqueue(() => {
      const before = this.#store.current;
      const statistics = options.statistics === undefined ? (before?.statistics ?? null) : options.statistics;
      return { policy, statistics, rules: parseRules(options.rules ?? before?.rules ?? [], policy) };
    });
  }

  rollback(revision?: number): Promise<PolicyResult> {
    return this.#enqueue(() => {
      const history = this.#store.history;
      const found =
        revision === undefined ? history.at(-2) : history.find((old) => old.revision === revision);
      if (found !== undefined) return found;
      const known = history.map((old) => old.revision).join(", ") || "none";
      throw new ConfigError("revision", revision ?? "the one before", `one of those remembered: ${known}`);
    });
  }

  waitForEngine(options: { readonly timeoutMs?: number } = {}): Promise<EngineView> {
    if (this.#closing !== undefined) return Promise.reject(new ControlPlaneClosed());
    const ready = this.engines().find((engine) => this.#ready(engine));
    if (ready !== undefined) return Promise.resolve(ready);
    return new Promise((resolve, reject) => {
      let timer: NodeJS.Timeout | undefined;
      const settled = () => {
        clearTimeout(timer);
        this.#waiters.delete(waiter);
      };
      const waiter: Waiter = {
        resolve: (engine) => {
          settled();
          resolve(engine);
        },
        reject: (error) => {
          settled();
          reject(error);
        },
      };
      this.#waiters.add(waiter);
      const { timeoutMs } = options;
      if (timeoutMs === undefined) return;
      timer = setTimeout(() => {
        waiter.reject(new EngineTimeout("engine", "none", `no engine was ready within ${timeoutMs} ms`));
      }, timeoutMs);
    });
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /** Everything that happens comes through here, on its way to the consumers of `events()`. */
  publish(event: ControlEvent): void {
    this.#tallies.add(event);
    switch (event.type) {
      case "connected":
        this.#rollout?.rollout.join(event.engine.engineId);
        this.#watches.joined(event.engine.engineId);
        if (this.#ready(event.engine)) this.#release(event.engine);
        break;
      case "disconnected":
        this.#rollout?.rollout.leave(event.engineId);
        break;
      case "acknowledged": {
        if (this.#rollout !== undefined && event.revision >= this.#rollout.target) {
          this.#rollout.rollout.acknowledge(event.engineId, event.step);
        }
        const engine = this.link.engines.get(event.engineId)?.view();
        if (engine !== undefined && this.#ready(engine)) this.#release(engine);
        break;
      }
      case "refused":
        if (this.#rollout !== undefined && event.revision >= this.#rollout.target) {
          this.#rollout.rollout.refuse(event.engineId, event);
        }
        if (this.link.engines.get(event.engineId)?.view().revision === 0) {
          for (const waiter of [...this.#waiters]) waiter.reject(new PolicyRefused(event.engineId, event));
        }
        break;
    }
    for (const [stream, wants] of this.#streams) {
      if (wants(event.type)) this.#overflowed += stream.push(event);
    }
  }

  #ready(engine: EngineView): boolean {
    const revision = this.#store.current?.revision;
    return (
      engine.connected &&
      (revision === undefined || (engine.step !== undefined && engine.revision >= revision))
    );
  }

  #release(engine: EngineView): void {
    for (const waiter of [...this.#waiters]) waiter.resolve(engine);
  }

  /** Calls take effect in order; `content` is asked when its turn comes. */
  #enqueue(content: () => PolicyContent, amend = false): Promise<PolicyResult> {
    const result = this.#queue.then(() => this.#replace(content(), amend));
    this.#queue = result.catch(() => {});
    return result;
  }

  async #replace(content: PolicyContent, amend: boolean): Promise<PolicyResult> {
    const before = this.#store.current;
    try {
      return await this.#roll(this.#store.replace(content, amend));
    } catch (error) {
      if (error instanceof PolicyRefused) await this.#rollback(before);
      throw error;
    }
  }

  async #rollback(before: PolicyRevision | undefined): Promise<void> {
    const restored = this.#store.rollback(before);
    if (restored === undefined) return;
    try {
      await this.#roll(restored);
    } catch (error) {
      this.#logger.error({ err: error }, "the policy before could not be put back in force everywhere");
    }
  }

  async #roll(revision: PolicyRevision): Promise<PolicyResult> {
    if (this.#closing !== undefined) throw new ControlPlaneClosed();
    const rollout = new Rollout(
      () => this.#store.current?.revision ?? revision.revision,
      this.link.engines.connected().map((engine) => engine.id),
      this.#options.ackTimeoutMs ?? 30_000,
    );
    this.#rollout = { target: revision.revision, rollout };
    this.publish({ type: "policy", ...revision });
    this.link.deliver();
    try {
      return await rollout.result;
    } finally {
      this.#rollout = undefined;
    }
  }

  async #close(): Promise<void> {
    this.#rollout?.rollout.fail(new ControlPlaneClosed());
    for (const waiter of [...this.#waiters]) waiter.reject(new ControlPlaneClosed());
    this.#driver?.close();
    await this.http?.close();
    this.#watches.close();
    await this.link.close();
    for (const stream of [...this.#streams.keys()]) stream.end();
  }
}
