import { ConfigError, parsePolicy, parseRules } from "@triattn/control";
import { type PolicyInput, presets, type Rule } from "@triattn/protocol";
import { type Chance, mutate } from "./random.ts";

const rules: readonly Rule[] = [
  { name: "a", match: { model: "org/*", priority: { min: -1, max: 5 }, tags: ["x", "y"] }, budget: 512 },
  { name: "b", match: {}, policy: "streaming" },
  { name: "c", match: {}, budget: 0, policy: presets.blend },
];

export interface Documents {
  accepted: number;
  refused: number;
}

/**
 * Mutated policies and rules: each is taken, and then means the same when it is given again, or is refused with a
 * field and a remedy. Throws for anything else.
 */
export function tryDocuments(chance: Chance, count: number): Documents {
  const found: Documents = { accepted: 0, refused: 0 };
  const full = Object.values(presets).map((preset) => parsePolicy(preset));
  for (let i = 0; i < count; i++) {
    let document: unknown = structuredClone(chance.pick(full));
    let own: unknown = structuredClone(rules);
    for (let times = chance.below(3); times >= 0; times--) {
      if (chance.next() < 0.7) document = mutate(chance, document);
      else own = mutate(chance, own);
    }
    try {
      const policy = parsePolicy(document as PolicyInput);
      const parsed = parseRules(own as Rule[], policy);
      same(parsePolicy(policy), policy);
      same(parseRules(parsed, policy), parsed);
      found.accepted += 1;
    } catch (error) {
      if (!(error instanceof ConfigError) || error.field === "" || error.remedy === "") throw error;
      found.refused += 1;
    }
  }
  if (Object.keys(Object.prototype).length > 0) throw new Error("a document reached Object.prototype");
  return found;
}

function same(a: unknown, b: unknown): void {
  if (JSON.stringify(a) !== JSON.stringify(b))
    throw new Error(`${JSON.stringify(b)} became ${JSON.stringify(a)}`);
}
