import { PolicyDocument, type PolicyInput, type PresetName, presets } from "@triattn/protocol";
import type { z } from "zod";
import { ConfigError } from "./errors.ts";

/** The complete document of a preset. Throws ConfigError for a name that is not there. */
export function preset(name: string, field = "policy"): PolicyDocument {
  const input = Object.hasOwn(presets, name) ? presets[name as PresetName] : undefined;
  if (input === undefined) {
    throw new ConfigError(field, name, `one of ${Object.keys(presets).sort().join(", ")}`);
  }
  return PolicyDocument.parse(input);
}

/**
 * A complete policy from a preset's name or a document given in part.
 * Throws ConfigError naming the field (below `field`), its value and what would be accepted.
 */
export function parsePolicy(input: PolicyInput | PresetName, field = "policy"): PolicyDocument {
  if (typeof input === "string") return preset(input, field);
  const parsed = PolicyDocument.safeParse(input);
  if (!parsed.success) throw explain(parsed.error, input, field);
  checkPolicy(parsed.data, field);
  return parsed.data;
}

/** Throws ConfigError when the policy contradicts itself, whatever the engine. */
export function checkPolicy(policy: PolicyDocument, field = "policy"): void {
  checkPinned(`${field}.budget`, policy.budget, policy);
}

/** Throws ConfigError for a budget that cannot hold what the policy pins. */
export function checkPinned(field: string, budget: number, { pin }: PolicyDocument): void {
  const pinned = pin.sinks + pin.window;
  if (budget > 0 && budget < pinned) {
    throw new ConfigError(
      field,
      budget,
      `at least pin.sinks + pin.window = ${pinned}, or 0 to never compress`,
    );
  }
}

/** The first thing that is wrong with `input`, as one error; `field` is what `input` is called. */
export function explain(error: z.ZodError, input: unknown, field: string): ConfigError {
  const issue = error.issues[0];
  const path = issue?.path ?? [];
  let value: unknown = input;
  for (const step of path) {
    value = typeof value === "object" && value !== null ? Reflect.get(value, step) : undefined;
  }
  return new ConfigError(
    [field, ...path].join("."),
    value === undefined ? "missing" : value,
    issue?.message ?? error.message,
  );
}
