import { useMemo, useState } from "preact/hooks";
import { full, percent, plural } from "../lib/format.ts";
import { arrange, type Column, keyOf, type Row, type Sort } from "../lib/requests.ts";
import { go, route } from "../state/page.ts";
import { omitted, rows, state } from "../state/store.ts";
import { isStale } from "../ui/banner.tsx";
import { Grid, type GridColumn } from "../ui/grid.tsx";
import { Detail } from "./detail.tsx";

const COLUMNS: readonly (GridColumn<Row> & { readonly id: Column })[] = [
  {
    id: "request",
    title: "Request",
    width: 132,
    grow: 2,
    rank: 0,
    cell: ({ request }) => <span class="mono clip">{request}</span>,
  },
  { id: "engineId", title: "Engine", width: 90, grow: 1, rank: 3, cell: ({ engineId }) => engineId },
  {
    id: "state",
    title: "State",
    width: 66,
    rank: 4,
    cell: ({ state }) => <span class={`state ${state}`}>{state}</span>,
  },
  {
    id: "priority",
    title: "Prio.",
    description: "Priority number",
    width: 44,
    numeric: true,
    rank: 9,
    cell: ({ priority }) => priority,
  },
  {
    id: "prompt",
    title: "Prompt",
    description: "Prompt tokens",
    width: 58,
    numeric: true,
    rank: 8,
    cell: ({ prompt }) => full(prompt),
  },
  {
    id: "computed",
    title: "Length",
    description: "Logical length in tokens",
    width: 58,
    numeric: true,
    rank: 2,
    cell: ({ computed }) => full(computed),
  },
  {
    id: "resident",
    title: "Resident",
    description: "Tokens whose KV is in the cache, of the budget",
    width: 112,
    grow: 1,
    numeric: true,
    rank: 1,
    cell: (row) => <ResidentCell row={row} />,
  },
  {
    id: "budget",
    title: "Budget",
    description: "KV budget in tokens",
    width: 54,
    numeric: true,
    rank: 5,
    cell: ({ budget }) => (budget === 0 ? "off" : full(budget)),
  },
  {
    id: "kept",
    title: "Kept",
    description: "Resident tokens of the logical length",
    width: 50,
    numeric: true,
    rank: 3,
    cell: ({ kept }) => percent(kept),
  },
  { id: "rounds", title: "Rounds", width: 56, numeric: true, rank: 6, cell: ({ rounds }) => full(rounds) },
  {
    id: "evictedTotal",
    title: "Evicted",
    description: "Tokens evicted so far",
    width: 60,
    numeric: true,
    rank: 7,
    cell: ({ evictedTotal }) => full(evictedTotal),
  },
  {
    id: "rule",
    title: "Rule and tags",
    width: 90,
    grow: 1,
    rank: 10,
    cell: ({ rule, tags }) => (
      <span class="clip">
        {rule}
        {tags.map((tag) => (
          <span key={tag} class="tag">
            {tag}
          </span>
        ))}
      </span>
    ),
  },
];

/** Where there is one engine, no request need say which. */
const ALONE = COLUMNS.filter(({ id }) => id !== "engineId");

/** How full its budget is: the bar ends where a round leaves it. */
function ResidentCell({ row: { resident, budget, computed } }: { readonly row: Row }) {
  const of = budget === 0 ? computed : budget;
  const share = of > 0 ? Math.min(1, resident / of) : 0;
  return (
    <span class="resident">
      <span class="meter" aria-hidden="true">
        <span style={{ width: `${(100 * share).toFixed(0)}%` }} />
      </span>
      {full(resident)}
    </span>
  );
}

const rowKey = ({ key }: Row): string => key;

export function Requests() {
  const [filter, setFilter] = useState("");
  const [sort, setSort] = useState<Sort>({ column: "computed", descending: true });
  const all = rows.value;
  const several = (state.value?.engines.length ?? 0) > 1;
  const shown = useMemo(() => arrange(all, filter, sort), [all, filter, sort]);
  const at = route.value;
  const chosen =
    at.view === "requests" && at.engineId !== undefined && at.request !== undefined
      ? { engineId: at.engineId, request: at.request }
      : null;
  const onSort = (id: string) => {
    const column = id as Column;
    const text = ["request", "engineId", "state", "rule"].includes(column);
    setSort({ column, descending: sort.column === column ? !sort.descending : !text });
  };
  return (
    <div class={chosen === null ? "requests" : "requests chosen"}>
      <section class={isStale() ? "card table stale" : "card table"} aria-labelledby="requests-title">
        <header>
          <h2 id="requests-title">Requests</h2>
          <span class="muted small">
            {filter === "" ? plural(all.length, "request") : `${full(shown.length)} of ${full(all.length)}`}
            {omitted.value > 0 && `; ${full(omitted.value)} more are not reported`}
          </span>
          <div class="end">
            <input
              class="input filter"
              type="search"
              placeholder="Filter: text, state:waiting, tag:batch"
              aria-label="Filter requests by text, state:, rule: or tag:"
              value={filter}
              onInput={(event) => setFilter(event.currentTarget.value)}
            />
          </div>
        </header>
        <Grid
          label="Requests"
          columns={several ? COLUMNS : ALONE}
          items={shown}
          keyOf={rowKey}
          selected={chosen === null ? null : keyOf(chosen.engineId, chosen.request)}
          onSelect={({ engineId, request }) => go({ view: "requests", engineId, request })}
          sort={sort}
          onSort={onSort}
          empty={
            filter !== ""
              ? "No request matches."
              : state.value === null
                ? "Waiting for the control plane …"
                : "No request is running."
          }
        />
      </section>
      {chosen !== null && <Detail key={keyOf(chosen.engineId, chosen.request)} {...chosen} />}
    </div>
  );
}
