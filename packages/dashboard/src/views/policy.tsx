import type { PresetName } from "@triattn/protocol";
import { useEffect, useState } from "preact/hooks";
import { api } from "../api/client.ts";
import { full, plural, toNumber } from "../lib/format.ts";
import { PRESETS } from "../lib/rules.ts";
import {
  base,
  checking,
  dirty,
  fill,
  isRequest,
  keepPreview,
  load,
  outdated,
  type Problem,
  preview,
  problem,
  request,
  rules,
  statistics,
  text,
  toProblem,
} from "../state/draft.ts";
import { announcement } from "../state/page.ts";
import { state } from "../state/store.ts";
import { Confirm } from "./policy-confirm.tsx";
import { Editor, lineOfProblem, Numbers } from "./policy-editor.tsx";
import { Changes, Effect } from "./policy-effect.tsx";
import { PolicyHistory } from "./policy-history.tsx";
import { Rules } from "./policy-rules.tsx";

/** Editor, what it would change, and the policies before. */
export function Policy() {
  const [tab, setTab] = useState<"document" | "rules">("document");
  const [asking, setAsking] = useState(false);
  const [applying, setApplying] = useState(false);
  const [outcome, setOutcome] = useState<{ good: string } | { bad: Problem } | null>(null);
  const current = state.value?.policy ?? null;
  const controller = state.value?.controller ?? null;
  useEffect(() => {
    if (current !== null && (base.peek() === null || (!dirty.peek() && outdated.peek()))) load(current);
  }, [current?.revision]);
  useEffect(keepPreview, []);

  const draft = request.value;
  const apply = async () => {
    if (!isRequest(draft)) return;
    setAsking(false);
    setApplying(true);
    setOutcome(null);
    try {
      const { revision, engines } = await api.setPolicy(draft);
      const where =
        engines.length === 0
          ? "no engine is connected"
          : engines.map(({ step }) => `step ${full(toNumber(step))}`).join(", ");
      const said = `Revision ${revision} is in force: ${where}.`;
      setOutcome({ good: said });
      announcement.value = said;
      statistics.value = "";
      const now = state.peek()?.policy;
      const taken = preview.peek();
      if (now != null && now.revision === revision) load(now);
      else if (taken !== null && now != null) {
        load({ ...now, revision, policy: taken.document, rules: draft.rules ?? now.rules });
      }
    } catch (error) {
      setOutcome({ bad: toProblem(error) });
    } finally {
      setApplying(false);
    }
  };
  const usable = isRequest(draft) && problem.value === null && preview.value !== null && !checking.value;
  return (
    <div class="policy">
      <section class="card editor" aria-labelledby="policy-title">
        <header>
          <h2 id="policy-title">Policy</h2>
          <div class="segments" role="tablist" aria-label="Parts of the policy">
            <button
              type="button"
              role="tab"
              id="tab-document"
              aria-controls="policy-panel"
              aria-selected={tab === "document"}
              onClick={() => setTab("document")}
            >
              Document
            </button>
            <button
              type="button"
              role="tab"
              id="tab-rules"
              aria-controls="policy-panel"
              aria-selected={tab === "rules"}
              onClick={() => setTab("rules")}
            >
              Rules{rules.value.length > 0 && ` (${rules.value.length})`}
            </button>
          </div>
          <div class="end">
            <PresetPicker onProblem={(bad) => setOutcome({ bad })} />
          </div>
        </header>
        <div class="editor-body" role="tabpanel" id="policy-panel" aria-labelledby={`tab-${tab}`}>
          {tab === "document" ? (
            <>
              <Numbers />
              <Editor />
            </>
          ) : (
            <Rules />
          )}
        </div>
        <Verdict />
        {outdated.value && dirty.value && (
          <p class="problem warn">
            Revision {current?.revision} was put in force meanwhile; this draft began with{" "}
            {base.value?.revision}.{" "}
            <button type="button" class="link" onClick={() => current !== null && load(current)}>
              Start again from it
            </button>
          </p>
        )}
        {outcome !== null && "good" in outcome && <p class="problem good">{outcome.good}</p>}
        {outcome !== null && "bad" in outcome && (
          <p class="problem" role="alert">
            Not in force: {outcome.bad.message}
            {outcome.bad.remedy !== null && !outcome.bad.message.includes(outcome.bad.remedy)
              ? ` Remedy: ${outcome.bad.remedy}`
              : ""}
          </p>
        )}
        <footer class="editor-foot">
          <span class="muted small">
            {current === null ? "No policy is in force." : `In force: revision ${current.revision}`}
            {current !== null && `, ${plural(current.rules.length, "rule")}`}
            {controller !== null &&
              `; the pressure controller moves the budget between ${full(controller.min)} and ${full(controller.max)}, now ${full(controller.budget)}: ${controller.reason}`}
          </span>
          <button
            type="button"
            class="button"
            disabled={!dirty.value || current === null}
            onClick={() => {
              if (current !== null) load(current);
              setOutcome(null);
            }}
          >
            Discard
          </button>
          <button
            type="button"
            class="button primary"
            disabled={!usable || !dirty.value || applying}
            onClick={() => setAsking(true)}
          >
            {applying ? "Applying …" : "Apply"}
          </button>
        </footer>
      </section>
      <div class="policy-side">
        <Effect />
        <Changes />
        <PolicyHistory />
      </div>
      {asking && preview.value !== null && (
        <Confirm preview={preview.value} onCancel={() => setAsking(false)} onApply={() => void apply()} />
      )}
    </div>
  );
}

/** Whether the draft can be used, under the editor. */
function Verdict() {
  const wrong = problem.value;
  if (wrong !== null) {
    const line = lineOfProblem(wrong);
    const said = wrong.remedy !== null && wrong.message.includes(wrong.remedy);
    return (
      <p class="problem" role="status" id="policy-problem">
        {line !== null && <b>Line {line}: </b>}
        {wrong.message}
        {wrong.remedy !== null && !said && ` → ${wrong.remedy}`}
      </p>
    );
  }
  return (
    <p class="verdict small" role="status" id="policy-problem">
      {checking.value ? (
        <span class="muted">Checking …</span>
      ) : preview.value === null ? null : (
        <span class="ok">✓ Valid</span>
      )}
    </p>
  );
}

function PresetPicker({ onProblem }: { readonly onProblem: (problem: Problem) => void }) {
  const choose = async (event: Event) => {
    const select = event.currentTarget as HTMLSelectElement;
    const name = select.value as PresetName;
    select.value = "";
    try {
      const { document } = await api.preview({ policy: name });
      const now = isRequest(request.peek())
        ? (JSON.parse(text.peek()) as { budget?: unknown; interval?: unknown })
        : {};
      // The operator's numbers stay: a preset says how tokens are chosen, not how many.
      const kept = {
        ...(typeof now.budget === "number" && { budget: now.budget }),
        ...(typeof now.interval === "number" && { interval: now.interval }),
      };
      fill({ ...document, ...kept });
    } catch (error) {
      onProblem(toProblem(error));
    }
  };
  return (
    <select class="select preset" aria-label="Start from a preset" onChange={(event) => void choose(event)}>
      <option value="">From a preset …</option>
      {PRESET_NAMES.map((name) => (
        <option key={name} value={name}>
          {PRESETS[name] === undefined ? name : `${name}: ${PRESETS[name]}`}
        </option>
      ))}
    </select>
  );
}
