import type { ApiPreview, PolicyDocument, RequestState, Rule } from "@triattn/protocol";
import type { PolicyContent } from "./policy-store.ts";
import { matchesModel } from "./rules.ts";
import type { EngineView } from "./types.ts";

/** The integers that decide about a request's rounds. */
interface Budgeting {
  readonly budget: number;
  readonly interval: number;
  readonly countPrompt: boolean;
}

function ruleOf(rules: readonly Rule[], model: string, request: RequestState): Rule | undefined {
  return rules.find(({ match }) => {
    if (match.model !== undefined && !matchesModel(match.model, model)) return false;
    const { min = -Infinity, max = Infinity } = match.priority ?? {};
    if (request.priority < min || request.priority > max) return false;
    return (match.tags ?? []).every((tag) => request.tags.includes(tag));
  });
}

/** What holds for a request under a policy, the request's own budget aside. */
export function budgetingOf(content: PolicyContent, model: string, request: RequestState): Budgeting {
  const rule = ruleOf(content.rules, model, request);
  const policy = (rule?.policy as PolicyDocument | undefined) ?? content.policy;
  const { interval, countPrompt } = policy;
  return { budget: rule?.budget ?? policy.budget, interval, countPrompt };
}

type EngineEffect = ApiPreview["engines"][number];

/**
 * What the first rounds under `next` would free, of requests that run under `current` now. The arithmetic is
 * that of the engine's plan (kernels/triattn/plan.py); shared blocks, which a round copies, are not known here.
 */
export function previewEngine(
  engine: EngineView,
  requests: readonly RequestState[],
  current: PolicyContent | undefined,
  next: PolicyContent,
): EngineEffect {
  const { cache, model } = engine.hello;
  const { blockSize, blocks } = cache;
  let [requestsCompressed, tokensEvicted, blocksReclaimed, running] = [0, 0, 0, 0];
  for (const request of requests) {
    if (request.state !== "running") continue;
    running += 1;
    const before = current && budgetingOf(current, model.name, request);
    const after = budgetingOf(next, model.name, request);
    // A budget that no rule explains is the request's own, and stays.
    const own = before !== undefined && before.budget !== request.budget;
    const budget = own ? request.budget : after.budget;
    if (budget === 0) continue;
    const keep = after.countPrompt ? budget : budget + request.prompt;
    if (request.resident < keep + after.interval) continue;
    requestsCompressed += 1;
    tokensEvicted += request.resident - keep;
    blocksReclaimed += Math.ceil(request.resident / blockSize) - Math.ceil(keep / blockSize);
  }
  const used = engine.counters?.usedBlocks ?? 0;
  const share = (count: number) => (blocks === 0 ? 0 : Math.max(0, count) / blocks);
  return {
    engineId: engine.engineId,
    requests: running,
    requestsCompressed,
    tokensEvicted,
    blocksReclaimed,
    cacheUsedBefore: share(used),
    cacheUsedAfter: share(used - blocksReclaimed),
  };
}

/** Where two values of JSON differ, leaf by leaf; what one of them lacks is null there. */
export function differences(from: unknown, to: unknown, path = ""): ApiPreview["changes"] {
  if (Object.is(from, to)) return [];
  const isObject = (value: unknown): value is Record<string, unknown> =>
    typeof value === "object" && value !== null;
  if (!isObject(from) || !isObject(to) || Array.isArray(from) !== Array.isArray(to)) {
    return [{ path, from: from ?? null, to: to ?? null }];
  }
  const keys = new Set([...Object.keys(from), ...Object.keys(to)]);
  return [...keys].flatMap((key) => differences(from[key], to[key], path === "" ? key : `${path}.${key}`));
}
