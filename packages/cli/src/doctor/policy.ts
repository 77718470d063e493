import { StatisticsError, StatisticsLibrary } from "@triattn/control";
import { needsStatistics, resolvePolicy, usesStatistics } from "../serve/policy.ts";
import { type Finding, fromError, ok, warn } from "./finding.ts";

/** The policy that serve would take, and the statistics that it needs. */
export function policy(
  model: string | undefined,
  name: string | undefined,
  environment: NodeJS.ProcessEnv,
): Finding[] {
  if (model === undefined) return [library(environment)];
  try {
    const {
      policy: found,
      source,
      statistics,
      warnings,
    } = resolvePolicy({ model, policy: name }, environment);
    const needed =
      needsStatistics(found) || (statistics !== null && usesStatistics(found))
        ? statistics
        : `${statistics ?? "none"}, and this policy needs none`;
    return [
      ok("policy", `${found.name}, budget ${found.budget} (${source})`),
      ok("statistics", `${needed}`),
      ...warnings.map((text) => warn("policy", text, fixFor(text))),
    ];
  } catch (error) {
    return [fromError(error instanceof StatisticsError ? "statistics" : "policy", error)];
  }
}

/** What to do about a warning, where it does not say so itself. */
function fixFor(warning: string): string {
  return warning.startsWith("no statistics") ? "make them, or leave it" : "unset the variable, or leave it";
}

function library(environment: NodeJS.ProcessEnv): Finding {
  const { entries } = new StatisticsLibrary({}, environment);
  if (entries.length === 0)
    return warn("statistics", "none on this machine", "triattn calibrate MODEL makes them");
  return ok("statistics", `of ${entries.map(({ name }) => name).join(", ")}`);
}
