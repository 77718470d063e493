import type { ApiPreview } from "@triattn/protocol";
import { useMemo } from "preact/hooks";
import { diffLines, hunks } from "../lib/diff.ts";
import { compact, full, percent } from "../lib/format.ts";
import { base, dirty, isRequest, pretty, preview, request, statistics } from "../state/draft.ts";

/** What the draft would do to the requests that run now. */
export function Effect() {
  const seen = preview.value;
  return (
    <section class="card" aria-labelledby="effect-title">
      <header>
        <h2 id="effect-title">Effect on what runs now</h2>
        <span class="end muted small">{seen !== null && "an estimate; nothing is changed yet"}</span>
      </header>
      {seen === null ? (
        <p class="muted small pad">Shown when the draft is valid.</p>
      ) : seen.engines.length === 0 ? (
        <p class="muted small pad">No engine is connected.</p>
      ) : (
        <ul class="effects">
          {seen.engines.map((engine) => (
            <li key={engine.engineId}>
              {seen.engines.length > 1 && <h3 class="mono">{engine.engineId}</h3>}
              <EngineEffect effect={engine} />
            </li>
          ))}
        </ul>
      )}
    </section>
  );
}

function EngineEffect({ effect }: { readonly effect: ApiPreview["engines"][number] }) {
  const { requestsCompressed, tokensEvicted, blocksReclaimed, cacheUsedBefore, cacheUsedAfter } = effect;
  const change = cacheUsedAfter - cacheUsedBefore;
  return (
    <>
      <dl class="effect">
        <div>
          <dt>Requests compressed</dt>
          <dd>
            {full(requestsCompressed)} <small class="muted">of {full(effect.requests)}</small>
          </dd>
        </div>
        <div>
          <dt>Tokens evicted at once</dt>
          <dd>{compact(tokensEvicted)}</dd>
        </div>
        <div>
          <dt>Blocks back</dt>
          <dd>{compact(blocksReclaimed)}</dd>
        </div>
        <div>
          <dt>Cache use</dt>
          <dd>
            {percent(cacheUsedBefore)} → {percent(cacheUsedAfter)}
          </dd>
        </div>
      </dl>
      <div
        class="before-after"
        role="img"
        aria-label={`Cache use now ${percent(cacheUsedBefore)}, then ${percent(cacheUsedAfter)}`}
      >
        <span class="bar-before" style={{ width: `${100 * cacheUsedBefore}%` }} />
        <span
          class={change > 0 ? "bar-after more" : "bar-after"}
          style={{ width: `${100 * cacheUsedAfter}%` }}
        />
      </div>
    </>
  );
}

/** The draft against the policy in force, line by line. */
export function Changes() {
  const from = base.value;
  const draft = request.value;
  const seen = preview.value;
  const lines = useMemo(() => {
    if (from === null || !isRequest(draft)) return [];
    const whole = (policy: unknown, rules: unknown, stats: unknown) =>
      pretty({ policy, ...(statistics.value === "" ? {} : { statistics: stats }), rules });
    return hunks(
      diffLines(
        whole(from.policy, from.rules, from.statistics),
        whole(seen?.document ?? draft.policy, draft.rules ?? [], draft.statistics),
      ),
    );
  }, [from, draft, seen]);
  const changed = lines.filter((line) => line !== null && line.kind !== "same").length;
  return (
    <section class="card changes" aria-labelledby="changes-title">
      <header>
        <h2 id="changes-title">Changes</h2>
        <span class="end muted small">
          {from === null ? "" : dirty.value && changed > 0 ? `against revision ${from.revision}` : "none"}
        </span>
      </header>
      {changed === 0 ? (
        <p class="muted small pad">The draft is what revision {from?.revision ?? "–"} says.</p>
      ) : (
        <section class="diff" tabIndex={0} aria-label="Lines that change">
          {lines.map((line, i) =>
            line === null ? (
              <div key={i} class="skipped" aria-hidden="true">
                ⋯
              </div>
            ) : (
              <div key={i} class={line.kind}>
                <span aria-hidden="true">{{ same: " ", added: "+", removed: "−" }[line.kind]}</span>
                {line.kind !== "same" && <span class="sr-only">{line.kind}: </span>}
                {line.text}
              </div>
            ),
          )}
        </section>
      )}
    </section>
  );
}
