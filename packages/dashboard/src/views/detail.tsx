import { useEffect, useRef } from "preact/hooks";
import { full, percent } from "../lib/format.ts";
import { keyOf, type Row } from "../lib/requests.ts";
import { go } from "../state/page.ts";
import { kept, rounds, roundsSeen, rows } from "../state/store.ts";
import { Close } from "../ui/icons.tsx";
import { KeptView } from "./kept.tsx";
import { Timeline } from "./timeline.tsx";

interface DetailProps {
  readonly engineId: string;
  readonly request: string;
}

/** One request: its numbers, its rounds, and what they keep. */
export function Detail({ engineId, request }: DetailProps) {
  const key = keyOf(engineId, request);
  const row = rows.value.find((one) => one.key === key);
  const last = useRef<Row | undefined>(undefined);
  if (row !== undefined) last.current = row;
  const shown = row ?? last.current;
  roundsSeen.value;
  const report = kept.value;
  const close = () => go({ view: "requests" });
  const ref = useRef<HTMLElement>(null);
  useEffect(() => {
    const element = ref.current;
    const onKey = (event: KeyboardEvent) => {
      if (event.key === "Escape") close();
    };
    element?.addEventListener("keydown", onKey);
    return () => element?.removeEventListener("keydown", onKey);
  }, []);
  return (
    <section ref={ref} class="card detail" aria-label={`Request ${request}`}>
      <header>
        <h2 class="mono clip" title={request}>
          {request}
        </h2>
        {row === undefined ? (
          <span class="pill">Gone</span>
        ) : (
          <span class={row.state === "running" ? "pill good" : "pill warn"}>{row.state}</span>
        )}
        <div class="end">
          <button type="button" class="button quiet icon" aria-label="Close the request" onClick={close}>
            <Close />
          </button>
        </div>
      </header>
      <section class="detail-body" tabIndex={0} aria-label="Details of the request">
        {shown === undefined ? (
          <p class="muted">
            This request is not reported: it has finished, or its engine reports no requests.
          </p>
        ) : (
          <Facts row={shown} />
        )}
        <Timeline rounds={rounds.get(key)} row={shown} />
        <KeptView
          report={report !== null && keyOf(report.engineId, report.request) === key ? report : null}
        />
      </section>
    </section>
  );
}

function Facts({ row }: { readonly row: Row }) {
  const facts: [string, string][] = [
    ["Length", full(row.computed)],
    ["Resident", `${full(row.resident)} (${percent(row.kept)})`],
    ["Budget", row.budget === 0 ? "off" : full(row.budget)],
    ["Prompt", full(row.prompt)],
    ["Evicted", full(row.evictedTotal)],
    ["Rounds", full(row.rounds)],
    ["Priority", String(row.priority)],
    ["Rule", row.rule ?? "none"],
    ["Tags", row.tags.join(", ") || "none"],
    ["Engine", row.engineId],
  ];
  return (
    <dl class="facts wide">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd class="clip" title={value}>
            {value}
          </dd>
        </div>
      ))}
    </dl>
  );
}
