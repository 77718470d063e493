import { ConfigError, parsePolicy } from "@triattn/control";
import type { PolicyDocument } from "@triattn/protocol";
import { resolvePolicy } from "../serve/policy.ts";

/** How much is kept: a part of what is generated (or scored), or so many resident tokens in all. */
export type Keep =
  | { readonly text: string; readonly ratio: number }
  | { readonly text: string; readonly budget: number };

/** `1/8`, `0.125`. Throws ConfigError. */
export function readRatio(text: string): Keep {
  const [, over = "", under] = /^(\d+(?:\.\d+)?)(?:\/(\d+))?$/.exec(text) ?? [];
  const ratio = Number(over) / Number(under ?? 1);
  if (over === "" || !(ratio > 0 && ratio < 1)) {
    throw new ConfigError("--keep", text, "a part between 0 and 1, as 1/8 or 0.125");
  }
  return { text, ratio };
}

/** A budget in tokens. Throws ConfigError. */
export function readBudget(text: string): Keep {
  if (!/^[1-9]\d*$/.test(text)) throw new ConfigError("--budget", text, "a whole number of at least 1");
  return { text: `budget ${text}`, budget: Number(text) };
}

/** Whether prompts are pinned. */
export type PinMode = "prompt" | "none";

export interface Arm {
  /** Unique: what rows and reports call it. */
  readonly label: string;
  readonly policy: string;
  /** Null: the full arm, in which nothing is compressed. */
  readonly keep: Keep | null;
  readonly pin: PinMode;
  /** The policy in force; its budget is replaced by each request's own. */
  readonly document: PolicyDocument;
  readonly statistics: string | null;
}

export interface ArmOptions {
  readonly model: string;
  readonly policies: readonly string[];
  readonly keeps: readonly Keep[];
  readonly pins: readonly PinMode[];
  readonly interval: number;
  /** Largest recency window: presets' own are made for budgets of thousands. */
  readonly window: number;
  readonly seed: number;
  readonly statistics?: string | undefined;
}

/** Always run: without them no figure means anything. */
export const controls = ["full", "random", "streaming"] as const;

/** The arms of a run, controls first; `full` once. Throws ConfigError, StatisticsError, ModelError. */
export function makeArms(options: ArmOptions): Arm[] {
  const { model, keeps, pins, interval, window, seed, statistics } = options;
  const names = [...new Set([...controls, ...options.policies])];
  const arms: Arm[] = [];
  for (const name of names) {
    const full = name === "full";
    const resolved = resolvePolicy({ model, policy: full ? "random" : name, statistics });
    if (resolved.rules.length > 0) {
      throw new ConfigError(
        "--policy",
        name,
        "a policy without rules: every request of an arm is treated alike",
      );
    }
    for (const pin of full ? (["prompt"] as const) : pins) {
      const { policy } = resolved;
      // The budget is each request's own; the document's only has to be possible.
      const document = parsePolicy({
        ...policy,
        budget: Math.max(policy.budget, 2048),
        interval,
        seed,
        countPrompt: true,
        pin: { ...policy.pin, prompt: pin === "prompt", window: Math.min(policy.pin.window, window) },
      });
      for (const keep of full ? [null] : keeps) {
        const parts = [
          full || keeps.length === 1 ? "" : `@${keep?.text}`,
          pin === "none" && pins.length > 1 ? " unpinned" : "",
        ];
        const label = (full ? "full" : document.name) + parts.join("");
        if (arms.some((arm) => arm.label === label)) {
          throw new ConfigError("--policy", name, `policies of different names: ${label} is there twice`);
        }
        arms.push({
          label,
          policy: full ? "full" : document.name,
          keep,
          pin,
          document,
          statistics: resolved.statistics,
        });
      }
    }
  }
  return arms;
}

/** Tokens of one request: what its budget is made from. */
export interface Sizes {
  readonly prompt: number;
  /** Expected to be generated; or, where a text is scored, 0. */
  readonly generated: number;
}

/**
 * A request's budget in resident tokens; 0 for the full arm. A ratio is of what is generated, the prompt besides; of
 * the text itself where nothing to speak of is generated.
 */
export function budgetOf(keep: Keep | null, { prompt, generated }: Sizes): number {
  if (keep === null) return 0;
  if ("budget" in keep) return keep.budget;
  return generated > 0 ? prompt + Math.ceil(keep.ratio * generated) : Math.ceil(keep.ratio * prompt);
}

/** Throws ConfigError for a budget that is impossible, or in which a prompt would silently not be pinned. */
export function checkBudgetOf(arm: Arm, sizes: Sizes, blockSize: number, task: string): void {
  if (arm.keep === null) return;
  const budget = budgetOf(arm.keep, sizes);
  const { sinks, window } = arm.document.pin;
  const pinned = arm.pin === "prompt" && sizes.generated > 0 ? sizes.prompt : 0;
  const least = Math.max(pinned + window + blockSize, sinks + window + blockSize);
  if (budget >= least) return;
  const what = pinned > 0 ? `a pinned prompt of ${pinned} tokens` : `${sinks} sinks`;
  throw new ConfigError(
    "budget" in arm.keep ? "--budget" : "--keep",
    arm.keep.text,
    `leaves a request of task ${task} ${budget} tokens, and ${arm.label} needs ${least} (${what}, a window of ` +
      `${window}, one block of ${blockSize}): keep more, or use longer tasks, a smaller --window, or --pin none`,
  );
}
