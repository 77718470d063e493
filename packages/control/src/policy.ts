import { PolicyDocument, type PolicyInput, type PresetName, presets } from "@triattn/protocol";
import type { z } from "zod";
import { ConfigError } from "./errors.ts";

/** The complete document of a preset. Throws ConfigError for a name that is not there. */
export function preset(name: string): PolicyDocument {
  const input = Object.hasOwn(presets, name) ? presets[name as PresetName] : undefined;
  if (input === undefined) {
    throw new ConfigError("policy", name, `one of ${Object.keys(presets).sort().join(", ")}`);
  }
  return PolicyDocument.parse(input);
}

/**
 * A complete policy from a preset's name or a document given in part.
 * Throws ConfigError naming the field, its value and what would be accepted.
 */
export function parsePolicy(input: PolicyInput | PresetName): PolicyDocument {
  if (typeof input === "string") return preset(input);
  const parsed = PolicyDocument.safeParse(input);
  if (!parsed.success) throw explain(parsed.error, input);
  checkPolicy(parsed.data);
  return parsed.data;
}

/** Throws ConfigError when the policy contradicts itself, whatever the engine. */
export function checkPolicy(policy: PolicyDocument): void {
  const pinned = policy.pin.sinks + policy.pin.window;
  if (policy.budget > 0 && policy.budget < pinned) {
    throw new ConfigError(
      "policy.budget",
      policy.budget,
      `at least pin.sinks + pin.window = ${pinned}, or 0 to never compress`,
    );
  }
}

function explain(error: z.ZodError, input: unknown): ConfigError {
  const issue = error.issues[0];
  const path = issue?.path ?? [];
  let value: unknown = input;
  for (const step of path) {
    value = typeof value === "object" && value !== null ? Reflect.get(value, step) : undefined;
  }
  return new ConfigError(
    ["policy", ...path].join("."),
    value === undefined ? "missing" : value,
    issue?.message ?? error.message,
  );
}
