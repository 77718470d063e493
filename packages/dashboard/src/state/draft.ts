import { computed, effect, signal } from "@preact/signals";
import type { ApiPolicy, ApiPolicyRequest, ApiPreview, Rule } from "@triattn/protocol";
import { api, RequestFailed } from "../api/client.ts";
import { parseJson } from "../lib/json.ts";
import { fromRules, type RuleDraft, toRules } from "../lib/rules.ts";
import { state } from "./store.ts";

const PREVIEW_DELAY_MS = 350;
/** How often a preview that is looked at is made again, as requests go on. */
const PREVIEW_AGAIN_MS = 5000;

/** What is wrong with a draft, by the page or by the control plane. */
export interface Problem {
  readonly message: string;
  readonly field: string | null;
  readonly remedy: string | null;
  /** In the policy's text, from 1. */
  readonly line: number | null;
}

export const text = signal("");
export const rules = signal<readonly RuleDraft[]>([]);
/** Empty: as before. */
export const statistics = signal("");
/** The revision that the draft began with; null: none yet. */
export const base = signal<ApiPolicy | null>(null);
export const preview = signal<ApiPreview | null>(null);
export const problem = signal<Problem | null>(null);
export const checking = signal(false);

export const pretty = (value: unknown): string => JSON.stringify(value, null, 2);

/** Begins anew with a policy. */
export function load(policy: ApiPolicy): void {
  base.value = policy;
  text.value = pretty(policy.policy);
  rules.value = fromRules(policy.rules);
  statistics.value = "";
}

/** Takes the content of a policy, of a preset or of an earlier revision; the revision compared with stays. */
export function fill(document: unknown, ruleList?: readonly Rule[]): void {
  text.value = pretty(document);
  if (ruleList !== undefined) rules.value = fromRules(ruleList);
}

export const dirty = computed(() => {
  const from = base.value;
  if (from === null) return text.value !== "";
  return (
    text.value !== pretty(from.policy) ||
    statistics.value !== "" ||
    JSON.stringify(toRules(rules.value)) !== JSON.stringify(from.rules)
  );
});

/** Whether somebody else put a policy in force since the draft began. */
export const outdated = computed(() => {
  const current = state.value?.policy;
  return current != null && base.value !== null && current.revision !== base.value.revision;
});

/** The draft as the control plane takes it; what is wrong where it is no JSON. */
export const request = computed<ApiPolicyRequest | Problem>(() => {
  const parsed = parseJson(text.value);
  if ("message" in parsed) {
    return { message: `This is not JSON: ${parsed.message}`, field: null, remedy: null, line: parsed.line };
  }
  const bad = rules.value.find(({ budget, min, max }) =>
    [budget, min, max].some((n) => !/^(-?\d+)?$/.test(n)),
  );
  if (bad !== undefined) {
    return {
      message: `Rule ${bad.name || "without a name"}: budget and priorities are whole numbers`,
      field: "rules",
      remedy: null,
      line: null,
    };
  }
  return {
    policy: parsed.value as ApiPolicyRequest["policy"],
    rules: toRules(rules.value),
    ...(statistics.value === "" ? {} : { statistics: statistics.value }),
  };
});

export const isRequest = (value: ApiPolicyRequest | Problem): value is ApiPolicyRequest => "policy" in value;

/** What the control plane says is wrong, as the editor shows it. */
export function toProblem(error: unknown): Problem {
  if (!(error instanceof RequestFailed)) {
    return { message: (error as Error).message, field: null, remedy: null, line: null };
  }
  const { message, field, remedy } = error;
  return { message, field, remedy, line: null };
}

/** Keeps the preview true to the draft while the editor is open. Returns what ends that. */
export function keepPreview(): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let running: AbortController | undefined;
  const look = async () => {
    const draft = request.peek();
    if (!isRequest(draft)) return;
    running?.abort();
    const own = new AbortController();
    running = own;
    try {
      const answer = await api.preview(draft, own.signal);
      if (own.signal.aborted) return;
      preview.value = answer;
      problem.value = null;
    } catch (error) {
      if (own.signal.aborted) return;
      problem.value = toProblem(error);
      if (error instanceof RequestFailed && error.status >= 400 && error.status < 500) preview.value = null;
    }
    checking.value = false;
  };
  const stop = effect(() => {
    const draft = request.value;
    clearTimeout(timer);
    running?.abort();
    if (!isRequest(draft)) {
      problem.value = draft;
      preview.value = null;
      checking.value = false;
      return;
    }
    if (text.value === "") return;
    checking.value = true;
    timer = setTimeout(() => void look(), PREVIEW_DELAY_MS);
  });
  const again = setInterval(() => {
    if (!document.hidden && !checking.peek() && preview.peek() !== null) void look();
  }, PREVIEW_AGAIN_MS);
  return () => {
    stop();
    clearTimeout(timer);
    clearInterval(again);
    running?.abort();
  };
}
