import type { ApiEvent } from "@triattn/protocol";
import { useMemo, useState } from "preact/hooks";
import { describeEvent, KINDS } from "../lib/events.ts";
import { clock, full } from "../lib/format.ts";
import { formatRoute } from "../lib/route.ts";
import { events, eventsSkipped } from "../state/store.ts";
import { Grid, type GridColumn } from "../ui/grid.tsx";

const keyOf = (event: ApiEvent): string => `${event.id} ${event.time}`;

const COLUMNS: readonly GridColumn<ApiEvent>[] = [
  { id: "time", title: "Time", width: 70, rank: 2, cell: ({ time }) => clock(time) },
  {
    id: "kind",
    title: "Kind",
    width: 104,
    rank: 1,
    cell: ({ kind }) => <span class={`kind ${kind}`}>{kind}</span>,
  },
  { id: "engine", title: "Engine", width: 120, grow: 1, rank: 4, cell: ({ engineId }) => engineId ?? "" },
  {
    id: "request",
    title: "Request",
    width: 130,
    grow: 1.4,
    rank: 3,
    cell: (event) => <RequestLink event={event} />,
  },
  { id: "what", title: "What happened", width: 150, grow: 4, rank: 0, cell: describeEvent },
];

function RequestLink({ event: { engineId, request } }: { readonly event: ApiEvent }) {
  if (engineId === null || request === null) return null;
  return (
    // The grid is one stop of the Tab key; Enter on the row follows the link.
    <a href={formatRoute({ view: "requests", engineId, request })} tabIndex={-1}>
      {request}
    </a>
  );
}

/** The log: newest first, by kind and text, held still while it is read. */
export function Events() {
  const [kinds, setKinds] = useState<ReadonlySet<ApiEvent["kind"]>>(new Set());
  const [text, setText] = useState("");
  const [held, setHeld] = useState<readonly ApiEvent[] | null>(null);
  const all = held ?? events.value;
  const shown = useMemo(() => {
    const wanted = text.toLowerCase();
    const chosen = all.filter(
      (event) =>
        (kinds.size === 0 || kinds.has(event.kind)) &&
        (wanted === "" ||
          `${event.engineId} ${event.request} ${describeEvent(event)}`.toLowerCase().includes(wanted)),
    );
    return chosen.reverse();
  }, [all, kinds, text]);
  return (
    <section class="card table" aria-labelledby="events-title">
      <header>
        <h2 id="events-title">Events</h2>
        <fieldset class="chips">
          <legend class="sr-only">Kinds of events shown</legend>
          {KINDS.map((kind) => (
            <button
              key={kind}
              type="button"
              aria-pressed={kinds.has(kind)}
              onClick={() => {
                const next = new Set(kinds);
                if (!next.delete(kind)) next.add(kind);
                setKinds(next);
              }}
            >
              {kind}
            </button>
          ))}
        </fieldset>
        <div class="end">
          <span class="muted small">
            {full(shown.length)} of {full(all.length)}
            {eventsSkipped.value > 0 && `; ${full(eventsSkipped.value)} came too fast to be shown`}
          </span>
          <input
            class="input filter"
            type="search"
            placeholder="Filter"
            aria-label="Filter events by engine, request or text"
            value={text}
            onInput={(event) => setText(event.currentTarget.value)}
          />
          <button
            type="button"
            class="button"
            aria-pressed={held !== null}
            onClick={() => setHeld(held === null ? events.value : null)}
          >
            {held === null ? "Hold" : `Go on (${full(newer(held))} newer)`}
          </button>
        </div>
      </header>
      <Grid
        label="Events, newest first"
        columns={COLUMNS}
        items={shown}
        keyOf={keyOf}
        rowHeight={28}
        onSelect={({ engineId, request }) => {
          if (engineId !== null && request !== null)
            location.hash = formatRoute({ view: "requests", engineId, request });
        }}
        empty={all.length === 0 ? "Nothing has happened yet." : "No event matches."}
      />
    </section>
  );
}

function newer(held: readonly ApiEvent[]): number {
  const last = held.at(-1)?.id ?? 0;
  return Math.max(0, (events.value.at(-1)?.id ?? 0) - last);
}

const MOST_RECENT = 40;

/** The end of the log, for the overview. */
export function RecentEvents() {
  const recent = events.value.slice(-MOST_RECENT).reverse();
  return (
    <section class="card recent" aria-labelledby="recent-title">
      <header>
        <h2 id="recent-title">Recent events</h2>
        <a class="end small" href="#/events">
          All events
        </a>
      </header>
      {recent.length === 0 ? (
        <p class="empty">Nothing has happened yet.</p>
      ) : (
        <ol tabIndex={0} aria-label="Recent events, newest first">
          {recent.map((event) => (
            <li key={keyOf(event)}>
              <time class="muted" dateTime={event.time}>
                {clock(event.time)}
              </time>
              <span class={`kind ${event.kind}`}>{event.kind}</span>
              <span class="clip" title={event.request ?? event.engineId ?? undefined}>
                {event.request?.replace(/^(chat)?cmpl-/, "") ?? event.engineId}
              </span>
              <span class="clip muted" title={describeEvent(event)}>
                {describeEvent(event)}
              </span>
            </li>
          ))}
        </ol>
      )}
    </section>
  );
}
