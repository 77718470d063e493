import type { EngineRule, PolicyDocument, PolicyInput, PresetName, Rule } from "@triattn/protocol";
import { z } from "zod";
import { ConfigError } from "./errors.ts";
import { checkPinned, explain, parsePolicy } from "./policy.ts";
import { checkTag } from "./request-options.ts";

/** What one `SetPolicy` carries. */
const MOST_RULES = 64;
const MOST_POLICIES = 8;
const PRIORITY = z.int("a whole number");

const RuleSchema = z.strictObject({
  name: z.string().regex(/^[a-z0-9][a-z0-9._-]{0,63}$/, "lower-case letters, digits, and . _ -, 64 at most"),
  match: z.strictObject({
    model: z.string().min(1, "a model's name, * for anything").max(256).optional(),
    priority: z.strictObject({ min: PRIORITY.optional(), max: PRIORITY.optional() }).optional(),
    tags: z.array(z.string().min(1).max(64)).min(1).max(16).optional(),
  }),
  budget: z.int("a whole number of tokens").min(0).max(16777216).optional(),
  policy: z.union([z.string(), z.looseObject({})]).optional(),
});

const Rules = z.array(RuleSchema).max(MOST_RULES, `at most ${MOST_RULES} rules`);

/**
 * Complete rules, their policies written out, from rules as a user writes them. `policy` is what holds where a rule
 * names none. Throws ConfigError naming the field (`rules.0.budget`), its value and what would be accepted.
 */
export function parseRules(input: readonly Rule[], policy: PolicyDocument): readonly Rule[] {
  const parsed = Rules.safeParse(input);
  if (!parsed.success) throw explain(parsed.error, input, "rules");
  const names = new Set<string>();
  const rules = parsed.data.map((rule, index): Rule => {
    const field = `rules.${index}`;
    if (names.has(rule.name))
      throw new ConfigError(`${field}.name`, rule.name, "another name: this one is taken");
    names.add(rule.name);
    const { min, max } = rule.match.priority ?? {};
    if (min !== undefined && max !== undefined && min > max) {
      throw new ConfigError(`${field}.match.priority`, { min, max }, "min at most max");
    }
    for (const [at, tag] of (rule.match.tags ?? []).entries()) checkTag(`${field}.match.tags.${at}`, tag);
    if (rule.budget === undefined && rule.policy === undefined) {
      throw new ConfigError(field, rule.name, "a budget, a policy, or both: it would change nothing");
    }
    const own =
      rule.policy === undefined
        ? undefined
        : parsePolicy(rule.policy as PolicyInput | PresetName, `${field}.policy`);
    if (rule.budget !== undefined) checkPinned(`${field}.budget`, rule.budget, own ?? policy);
    // Through JSON: what is not there must not be there as undefined.
    return JSON.parse(JSON.stringify({ ...rule, policy: own })) as Rule;
  });
  const policies = new Set(
    rules.flatMap((rule) => (rule.policy === undefined ? [] : [JSON.stringify(rule.policy)])),
  );
  if (policies.size > MOST_POLICIES) {
    throw new ConfigError("rules", `${policies.size} policies`, `at most ${MOST_POLICIES} different ones`);
  }
  return rules;
}

/** The part of rules that concerns an engine that serves `model`, as `SetPolicy` carries it. */
export function engineRules(
  rules: readonly Rule[],
  model: string,
): { rules: EngineRule[]; policies: PolicyDocument[] } {
  const policies: PolicyDocument[] = [];
  const known = new Map<string, number>();
  const index = (policy: PolicyDocument): number => {
    const key = JSON.stringify(policy);
    const at = known.get(key) ?? policies.push(policy) - 1;
    known.set(key, at);
    return at;
  };
  const concerned = rules.filter(
    ({ match }) => match.model === undefined || matchesModel(match.model, model),
  );
  return {
    rules: concerned.map(({ name, match, budget, policy }) => ({
      name,
      minPriority: match.priority?.min ?? null,
      maxPriority: match.priority?.max ?? null,
      tags: [...(match.tags ?? [])],
      budget: budget ?? null,
      policy: policy === undefined ? null : index(policy as PolicyDocument),
    })),
    policies,
  };
}

/** Whether a pattern means a model; one without a slash means the last part of the name, too. */
export function matchesModel(pattern: string, model: string): boolean {
  if (glob(pattern, model)) return true;
  return !pattern.includes("/") && glob(pattern, model.replace(/\/+$/, "").split("/").at(-1) ?? model);
}

/** `*` is any text. Without a regular expression: a hostile pattern must not take exponential time. */
function glob(pattern: string, text: string): boolean {
  let [p, t, star, mark] = [0, 0, -1, 0];
  while (t < text.length) {
    if (pattern[p] === "*") {
      star = p++;
      mark = t;
    } else if (pattern[p] === text[t]) {
      p++;
      t++;
    } else if (star >= 0) {
      p = star + 1;
      t = ++mark;
    } else return false;
  }
  while (pattern[p] === "*") p++;
  return p === pattern.length;
}
