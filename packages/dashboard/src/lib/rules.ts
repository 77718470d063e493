import type { PresetName, Rule } from "@triattn/protocol";

/** What presets keep, as the picker says it. */
export const PRESETS: Readonly<Partial<Record<PresetName, string>>> = {
  auto: "what calibration learned that later queries miss",
  triattention: "keys that future queries are expected to attend to",
  blend: "triattention and keydiff, added",
  keydiff: "keys unlike the others",
  random: "the prompt and a random sample",
  streaming: "the first and the most recent tokens",
  "expected-attention": "keys that the next queries are expected to attend to, times the value's length",
  knorm: "short keys",
  leverage: "keys that no combination of the others stands in for",
  snapkv: "keys that the last 32 queries attend to",
  h2o: "half the most recent, half keys that were paid most attention in all",
  rkv: "a little of what the last 8 queries attend to, less keys like many others",
  superseded: "what no later token repeats",
  vase: "values of the largest range, the rest at random",
  "triattention-redundancy": "triattention, less what later values repeat",
  segments: "triattention, with quotas of eight segments",
};

/** A rule as the form holds it: text in every field. */
export interface RuleDraft {
  /** Of this page: it stays while the rule is moved and renamed. */
  readonly id: number;
  readonly name: string;
  readonly model: string;
  readonly min: string;
  readonly max: string;
  /** Separated by commas. */
  readonly tags: string;
  readonly budget: string;
  /** A preset's name; empty: the policy itself. */
  readonly preset: string;
  /** A policy document of its own, which the form shows and leaves as it is. */
  readonly document: Rule["policy"] | undefined;
}

let lastId = 0;

export function emptyRule(name: string): RuleDraft {
  lastId += 1;
  const none = { model: "", min: "", max: "", tags: "", budget: "", preset: "" };
  return { id: lastId, name, ...none, document: undefined };
}

export function fromRules(rules: readonly Rule[]): RuleDraft[] {
  return rules.map(({ name, match, budget, policy }) => ({
    ...emptyRule(name),
    model: match.model ?? "",
    min: text(match.priority?.min),
    max: text(match.priority?.max),
    tags: (match.tags ?? []).join(", "),
    budget: text(budget),
    preset: typeof policy === "string" ? policy : "",
    document: typeof policy === "string" ? undefined : policy,
  }));
}

/** Fields that are empty are left out. */
export function toRules(drafts: readonly RuleDraft[]): Rule[] {
  return drafts.map(({ name, model, min, max, tags, budget, preset, document }) => {
    const names = tags.split(",").flatMap((tag) => tag.trim() || []);
    const priority = { ...number("min", min), ...number("max", max) };
    return {
      name: name.trim(),
      match: {
        ...(model.trim() && { model: model.trim() }),
        ...(Object.keys(priority).length > 0 && { priority }),
        ...(names.length > 0 && { tags: names }),
      },
      ...number("budget", budget),
      ...(preset ? { policy: preset as PresetName } : document !== undefined && { policy: document }),
    };
  });
}

const text = (value: number | undefined): string => (value === undefined ? "" : String(value));

const number = <K extends string>(key: K, value: string): { [P in K]?: number } =>
  (value.trim() === "" ? {} : { [key]: Number(value) }) as { [P in K]?: number };
