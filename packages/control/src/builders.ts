import type { PolicyDocument, PolicyInput, PresetName, Rule } from "@triattn/protocol";
import { parsePolicy, preset } from "./policy.ts";

type Term = PolicyInput["terms"][number];

/** Kinds of score terms: `trig`, `norm`, `keydiff`, … */
export type TermKind = Term["kind"];

/** What a term of a kind takes, its kind aside. */
export type TermOptions<K extends TermKind> = Omit<Extract<Term, { readonly kind: K }>, "kind">;

/** Everything of a policy document but what has a method of its own. */
export type PolicySettings = Omit<PolicyInput, "schema" | "name" | "terms" | "pin" | "budget" | "interval">;

/**
 * Builds a policy document step by step; each step gives a new builder and leaves the one before as it was. A policy
 * has at least one term: before the first, there is no `build`.
 */
export interface PolicyBuilder<Ready extends boolean = boolean> {
  /** KV budget: resident tokens of a request after a round; 0 never compresses. Default 2,048. */
  budget(tokens: number): PolicyBuilder<Ready>;
  /** A round fires at budget + interval resident tokens. Default 128. */
  interval(tokens: number): PolicyBuilder<Ready>;
  /** Adds a score term. */
  term<K extends TermKind>(kind: K, options?: TermOptions<K>): PolicyBuilder<true>;
  /** Tokens that no round evicts: the prompt, the first `sinks`, the most recent `window`. */
  pin(pin: NonNullable<PolicyInput["pin"]>): PolicyBuilder<Ready>;
  /** Any other settings of a policy document: selection, normalisation, aggregation, seed, … */
  set(settings: PolicySettings): PolicyBuilder<Ready>;
  /** The complete document. Throws ConfigError naming what cannot be. */
  build: Ready extends true ? () => PolicyDocument : never;
}

/**
 * A builder of a policy named `name`; with `from`, one that begins with what a preset or another policy has.
 *
 * ```ts
 * const mine = policy("mine").budget(1024).term("keydiff", { weight: 2 }).pin({ window: 64 }).build();
 * const wider = policy("wider", "triattention").budget(4096).build();
 * ```
 */
export function policy(name: string): PolicyBuilder<false>;
export function policy(name: string, from: PresetName | PolicyInput): PolicyBuilder<true>;
export function policy(name: string, from?: PresetName | PolicyInput): PolicyBuilder {
  const base = typeof from === "string" ? preset(from) : from;
  return builder({ terms: [], ...base, name });
}

function builder(document: PolicyInput): PolicyBuilder<true> {
  const change = (changes: Partial<PolicyInput>) => builder({ ...document, ...changes });
  return {
    budget: (budget) => change({ budget }),
    interval: (interval) => change({ interval }),
    term: (kind, options) => change({ terms: [...document.terms, { ...options, kind } as Term] }),
    pin: (pin) => change({ pin: { ...document.pin, ...pin } }),
    set: (settings) => change(settings),
    build: () => parsePolicy(document),
  };
}

/** Which requests a rule is for; all that is given must hold. */
export interface RuleBuilder<Ready extends boolean = boolean> {
  /** Served models by name; `*` stands for anything. */
  model(pattern: string): RuleBuilder<Ready>;
  /** Inclusive bounds of the request's priority number. */
  priority(bounds: NonNullable<Rule["match"]["priority"]>): RuleBuilder<Ready>;
  /** Tags that the request carries, all of them. */
  tags(...tags: readonly string[]): RuleBuilder<Ready>;
  /** KV budget of the requests that match; 0 never compresses them. */
  budget(tokens: number): RuleBuilder<true>;
  /** Another policy for them. */
  policy(policy: PresetName | PolicyInput): RuleBuilder<true>;
  /** The rule; `setPolicy` checks it, together with all others. */
  build: Ready extends true ? () => Rule : never;
}

/**
 * A builder of a rule. A rule changes the budget, the policy, or both: before that, there is no `build`.
 *
 * ```ts
 * const vip = rule("vip").tags("vip").budget(0).build();
 * const batch = rule("batch").model("Qwen/*").priority({ min: 10 }).budget(512).policy("streaming").build();
 * ```
 */
export function rule(name: string): RuleBuilder<false> {
  return ruleBuilder({ name, match: {} }) as RuleBuilder as RuleBuilder<false>;
}

function ruleBuilder(made: Rule): RuleBuilder<true> {
  const matching = (match: Rule["match"]) => ruleBuilder({ ...made, match: { ...made.match, ...match } });
  return {
    model: (model) => matching({ model }),
    priority: (priority) => matching({ priority }),
    tags: (...tags) => matching({ tags: [...(made.match.tags ?? []), ...tags] }),
    budget: (budget) => ruleBuilder({ ...made, budget }),
    policy: (own) => ruleBuilder({ ...made, policy: own }),
    build: () => made,
  };
}
