import type { RequestState } from "@triattn/protocol";

/** A request of an engine, as the table shows it. */
export interface Row extends RequestState {
  readonly engineId: string;
  /** ENGINE/REQUEST */
  readonly key: string;
  /** Resident over logical length, 0 … 1. */
  readonly kept: number;
}

export const COLUMNS = [
  "request",
  "engineId",
  "state",
  "priority",
  "prompt",
  "computed",
  "resident",
  "budget",
  "kept",
  "rounds",
  "evictedTotal",
  "rule",
] as const;
export type Column = (typeof COLUMNS)[number];

export interface Sort {
  readonly column: Column;
  readonly descending: boolean;
}

export const keyOf = (engineId: string, request: string): string => `${engineId}/${request}`;

export function toRow(engineId: string, request: RequestState): Row {
  const kept = request.computed > 0 ? Math.min(1, request.resident / request.computed) : 1;
  return { ...request, engineId, key: keyOf(engineId, request.request), kept };
}

/**
 * Rows that hold every word of the filter, in order; rows that are equal stay in the order of their keys. Words match
 * the request, engine, rule and tags; `state:waiting`, `rule:NAME` and `tag:NAME` match only that.
 */
export function arrange(rows: readonly Row[], filter: string, { column, descending }: Sort): Row[] {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = words.length === 0 ? [...rows] : rows.filter((row) => words.every((w) => matches(row, w)));
  const sign = descending ? -1 : 1;
  return chosen.sort((a, b) => sign * compare(a[column], b[column]) || natural(a.key, b.key));
}

function matches(row: Row, word: string): boolean {
  const [, field, value = ""] = /^(state|rule|tag):(.*)$/.exec(word) ?? [];
  if (field === "state") return row.state.startsWith(value);
  if (field === "rule") return (row.rule ?? "").toLowerCase().includes(value);
  if (field === "tag") return row.tags.some((tag) => tag.toLowerCase().includes(value));
  return [row.request, row.engineId, row.rule ?? "", ...row.tags].some((text) =>
    text.toLowerCase().includes(word),
  );
}

const collator = new Intl.Collator("en", { numeric: true });
const natural = (a: string, b: string): number => collator.compare(a, b);

function compare(a: string | number | null, b: string | number | null): number {
  if (typeof a === "number" && typeof b === "number") return a - b;
  // What has none comes last.
  if (a === null || b === null) return Number(a === null) - Number(b === null);
  return natural(String(a), String(b));
}
