import type { Counters, PolicyDocument, Rule } from "@triattn/protocol";
import type { Logger } from "pino";
import type { ControlPlane } from "../control-plane.ts";
import { ConfigError, ControlPlaneClosed, PolicyRefused } from "../errors.ts";
import type { PolicyContent } from "../policy-store.ts";
import type { EngineView } from "../types.ts";
import { type Bounds, budgetIn, nextPressure, type Pressure, type Setting, start } from "./controller.ts";

/** Bounds of budgets in tokens; between them budgets move with the pressure on the cache. */
export interface PressureOptions extends Bounds {
  /** Bounds of rules' budgets, by the rules' names. A rule that is not named keeps its own budget. */
  readonly rules?: Readonly<Record<string, Bounds>>;
}

/** What the pressure controller has chosen for the policy, and why. */
export interface PressureView extends Bounds {
  readonly budget: number;
  readonly reason: string;
}

/** Observes engines by their counters, and puts budgets in force as the controller has them. */
export class PressureDriver {
  readonly #plane: ControlPlane;
  readonly #options: PressureOptions;
  readonly #logger: Logger;
  readonly #apply: (content: PolicyContent) => Promise<void>;
  readonly #events: ReturnType<ControlPlane["events"]>;
  readonly #engines = new Map<string, Pressure>();
  #chosen: Pressure;
  #failed: string | undefined;

  /** `apply` puts a policy in force in place of the current one. Throws ConfigError for bounds that cannot be. */
  constructor(
    plane: ControlPlane,
    options: PressureOptions,
    logger: Logger,
    apply: (content: PolicyContent) => Promise<void>,
  ) {
    checkPressure(options);
    this.#plane = plane;
    this.#options = options;
    this.#logger = logger;
    this.#apply = apply;
    this.#chosen = start(options);
    this.#events = plane.events("counters", "disconnected");
    void this.#follow();
  }

  view(): PressureView {
    const { min, max } = this.#options;
    const { budget, reason } = this.#chosen;
    return { budget, min, max, reason: this.#failed ?? reason };
  }

  close(): void {
    void this.#events.return?.();
  }

  async #follow(): Promise<void> {
    for await (const event of this.#events) {
      if (event.type === "disconnected") this.#engines.delete(event.engineId);
      if (event.type !== "counters" || this.#failed !== undefined) continue;
      const engine = this.#plane.engines().find(({ engineId }) => engineId === event.engineId);
      const current = this.#plane.policy;
      // Budget 0 is somebody's word that nothing is to be compressed.
      if (engine === undefined || current === undefined || current.policy.budget === 0) continue;
      this.#observe(engine, event.counters, current.policy.interval);
      await this.#enforce(current, engine.hello.cache.blockSize);
    }
  }

  #observe(engine: EngineView, counters: Counters, interval: number): void {
    const setting = this.#setting(engine, interval);
    const { usedBlocks, running, waiting } = counters;
    const usage = usedBlocks / Math.max(1, engine.hello.cache.blocks);
    const before = this.#engines.get(engine.engineId) ?? start(this.#options);
    this.#engines.set(engine.engineId, nextPressure(before, { usage, running, waiting }, setting));
    // One policy for all: the engine under the most pressure decides.
    this.#chosen = [...this.#engines.values()].reduce((a, b) => (b.budget < a.budget ? b : a));
  }

  #setting({ hello: { cache } }: EngineView, interval: number): Setting {
    const { min, max } = this.#options;
    return { min, max, capacity: cache.blocks * cache.blockSize, block: cache.blockSize, interval };
  }

  async #enforce({ policy, statistics, rules }: PolicyContent, block: number): Promise<void> {
    const { budget } = this.#chosen;
    const adjusted = rules.map((rule) => this.#adjust(rule, policy, block));
    if (policy.budget === budget && adjusted.every((rule, i) => rule.budget === rules[i]?.budget)) return;
    try {
      await this.#apply({ policy: { ...policy, budget }, statistics, rules: adjusted });
    } catch (error) {
      if (error instanceof ControlPlaneClosed) return;
      this.#logger.error({ err: error, budget }, "the pressure controller could not put a budget in force");
      // What an engine refuses once it refuses again.
      if (error instanceof PolicyRefused) this.#failed = `stopped: ${error.message}`;
    }
  }

  #adjust(rule: Rule, { interval }: PolicyDocument, block: number): Rule {
    const bounds = this.#options.rules?.[rule.name];
    if (bounds === undefined) return rule;
    const { min, max } = this.#options;
    return {
      ...rule,
      budget: budgetIn(bounds, this.#chosen.budget, { min, max, block, interval, capacity: 0 }),
    };
  }
}

/** Throws ConfigError for bounds that cannot be. */
export function checkPressure(options: PressureOptions): void {
  checkBounds("pressure", options);
  for (const [name, own] of Object.entries(options.rules ?? {})) checkBounds(`pressure.rules.${name}`, own);
}

function checkBounds(field: string, { min, max }: Bounds): void {
  if (!Number.isInteger(min) || min < 1)
    throw new ConfigError(`${field}.min`, min, "a whole number of tokens from 1");
  if (!Number.isInteger(max) || max < min) {
    throw new ConfigError(`${field}.max`, max, `a whole number of tokens of at least min = ${min}`);
  }
}
