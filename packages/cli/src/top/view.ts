import type { ApiEngine, ApiEvent, RequestState } from "@triattn/protocol";
import { sorted, type TopModel } from "./model.ts";

export interface Size {
  readonly columns: number;
  readonly rows: number;
}

/** Escape sequences; empty strings where there is no colour. */
export interface Style {
  readonly bold: string;
  readonly dim: string;
  readonly warn: string;
  readonly bad: string;
  readonly chosen: string;
  readonly reset: string;
}

export const COLOUR: Style = {
  bold: "\x1b[1m",
  dim: "\x1b[2m",
  warn: "\x1b[33m",
  bad: "\x1b[31m",
  chosen: "\x1b[7m",
  reset: "\x1b[0m",
};
export const PLAIN: Style = { bold: "", dim: "", warn: "", bad: "", chosen: "", reset: "" };

const EVENT_LINES = 3;
const LEAST: Size = { columns: 40, rows: 10 };

/** Text of others, made safe for a terminal: nothing but printable ASCII. */
export const safe = (text: string): string => text.replaceAll(/[^\x20-\x7e]/g, "?");
const cut = (text: string, width: number): string =>
  text.length <= width ? text : width <= 1 ? text.slice(0, width) : `${text.slice(0, width - 1)}~`;
const left = (text: string, width: number) => cut(text, width).padEnd(width);
const right = (text: string, width: number) => cut(text, width).padStart(width);

/** Made once: `toLocaleString` makes one for every number. */
const WHOLE = new Intl.NumberFormat("en-US");

/** A count in at most `width` characters: 712,432, 12.3M. */
export function count(value: number | string | null | undefined, width = 9): string {
  const number = Number(value);
  if (value === null || value === undefined || !Number.isFinite(number)) return "-";
  const text = WHOLE.format(Math.round(number));
  if (text.length <= width) return text;
  for (const [factor, letter] of [
    [1e3, "k"],
    [1e6, "M"],
    [1e9, "G"],
    [1e12, "T"],
    [1e15, "P"],
  ] as const) {
    const short = `${(number / factor).toFixed(1)}${letter}`;
    if (number / factor < 1000 && short.length <= width) return short;
  }
  return number.toExponential(0);
}

const rate = (value: number | undefined): string =>
  value === undefined ? "-" : value < 10 ? value.toFixed(1) : count(value, 7);

/** The columns of a table: title, width, cell. */
type Columns<T> = readonly (readonly [string, number, (item: T) => string])[];

function row<T>(columns: Columns<T>, item: T | undefined, width: number): string {
  const cells = columns.map(([title, size, cell], i) => {
    const text = item === undefined ? title : cell(item);
    return i === 0 ? left(text, size) : right(text, size);
  });
  return left(cells.join(" "), width);
}

function cacheShare({ counters, cache }: ApiEngine): number | undefined {
  return counters === null || cache.blocks === 0 ? undefined : counters.usedBlocks / cache.blocks;
}

function engineColumns(model: TopModel, width: number): Columns<ApiEngine> {
  const name = Math.max(8, Math.min(40, width - 67));
  return [
    ["ENGINE", name, (e) => safe(`${e.engineId}${e.connected ? "" : " (gone)"}`)],
    ["RUN", 4, (e) => count(e.counters?.running, 4)],
    ["WAIT", 4, (e) => count(e.counters?.waiting, 4)],
    ["RESIDENT", 9, (e) => count(e.counters?.residentTokens, 9)],
    ["CACHE", 5, (e) => (cacheShare(e) === undefined ? "-" : `${Math.round(100 * (cacheShare(e) ?? 0))}%`)],
    ["TOK/S", 7, (e) => rate(e.counters === null ? undefined : e.tokensPerSecond)],
    ["ROUND/S", 7, (e) => rate(model.rates.get(e.engineId)?.rounds)],
    ["EVICT/S", 7, (e) => rate(model.rates.get(e.engineId)?.evicted)],
    ["PREEMPT", 7, (e) => count(e.counters?.preemptions, 7)],
    ["STALL", 6, (e) => percent(model.rates.get(e.engineId)?.stalled)],
  ];
}

const percent = (share: number | undefined) => (share === undefined ? "-" : `${(100 * share).toFixed(1)}%`);

function requestColumns(width: number): Columns<RequestState> {
  const name = Math.max(8, width - 64);
  return [
    ["REQUEST", name, (r) => safe(r.request)],
    ["STATE", 7, (r) => r.state],
    ["PRIO", 4, (r) => count(r.priority, 4)],
    ["PROMPT", 7, (r) => count(r.prompt, 7)],
    ["LENGTH", 8, (r) => count(r.computed, 8)],
    ["RESIDENT", 8, (r) => count(r.resident, 8)],
    ["BUDGET", 7, (r) => (r.budget === 0 ? "full" : count(r.budget, 7))],
    ["EVICTED", 7, (r) => count(r.evictedTotal, 7)],
    ["ROUNDS", 6, (r) => count(r.rounds, 6)],
  ];
}

function headline({ url, state, trouble, paused }: TopModel, width: number, style: Style): string {
  const policy = state?.policy;
  const inForce =
    policy === null || policy === undefined
      ? "no policy yet"
      : `${safe(policy.policy.name)} r${policy.revision}, budget ${policy.policy.budget === 0 ? "none" : count(policy.policy.budget)}, ${policy.rules.length} rule${policy.rules.length === 1 ? "" : "s"}`;
  const controller = state?.controller == null ? "" : `, controller at ${count(state.controller.budget)}`;
  const mark = trouble !== undefined ? " [no connection]" : paused ? " [paused]" : "";
  const time = state?.time.slice(11, 19) ?? "";
  const text = `triattn top  ${safe(url).replace("http://", "")}  ${inForce}${controller}${mark}`;
  return `${style.bold}${left(text, width - 9)} ${right(time, 8)}${style.reset}`;
}

function detail(model: TopModel, list: readonly RequestState[]): string {
  const found = list.find(({ request }) => request === model.request);
  if (found === undefined)
    return model.request === undefined ? "" : `${safe(model.request)} is not there any more`;
  const rule = found.rule === null ? "no rule" : `rule ${safe(found.rule)}`;
  const tags = found.tags.length === 0 ? "" : `, tags ${found.tags.map(safe).join(" ")}`;
  const share = found.computed === 0 ? 1 : found.resident / found.computed;
  return `${safe(found.request)}: ${percent(share)} of ${count(found.computed)} resident, ${rule}${tags}`;
}

function eventLine({ time, kind, request, engineId, data }: ApiEvent): string {
  const about =
    kind === "round"
      ? [
          `evicted ${count(Number(data.evicted))} at length ${count(Number(data.computed))}, ${count(Number(data.blocksReclaimed))} blocks back`,
        ]
      : Object.entries(data)
          .filter(([key]) => key !== "step")
          .map(([key, value]) => `${key} ${typeof value === "number" ? count(value) : safe(String(value))}`);
  return `${time.slice(11, 19)} ${kind} ${safe(request ?? engineId ?? "")}  ${about.join(", ")}`;
}

function footer(model: TopModel, style: Style): string {
  const { proposal, notice, trouble } = model;
  if (proposal !== undefined) {
    const from = model.state?.policy?.policy.budget ?? 0;
    const effect = proposal.preview?.engines ?? [];
    const sum = (of: (engine: (typeof effect)[number]) => number) =>
      effect.reduce((all, one) => all + of(one), 0);
    const what =
      proposal.error !== undefined
        ? `${style.bad}${safe(proposal.error)}${style.reset}`
        : proposal.sent
          ? "waiting for the engines"
          : proposal.preview === undefined
            ? "asking what it would do"
            : `${count(sum((e) => e.requestsCompressed))} rounds at once, ${count(sum((e) => e.tokensEvicted))} tokens go`;
    const asked = proposal.sent ? "" : "? [Enter] yes [Esc] no";
    return `${style.warn}budget ${count(from)} -> ${count(proposal.budget)}${asked}${style.reset}  ${what}`;
  }
  if (trouble !== undefined) return `${style.bad}${safe(trouble)}${style.reset}`;
  if (notice !== undefined) return safe(notice);
  return `${style.dim}q quit  s sort: ${model.sort}${model.reversed ? " (reversed)" : ""}  up/down choose  +/- budget  tab engine  ? help${style.reset}`;
}

const HELP = [
  "q, Ctrl-C     quit",
  "s, r          sort by the next column; reverse",
  "up, down      choose a request (k, j; PgUp, PgDn, Home, End)",
  "tab           requests of the next engine",
  "+, -          propose a budget, an interval more or less; 0 never compresses",
  "Enter, Esc    apply the proposal, or leave it",
  "space         hold what is shown",
  "?             this help",
  "",
  "RESIDENT  tokens whose KV is in the cache     CACHE  blocks in use",
  "EVICT/S   tokens evicted a second             STALL  time spent waiting for rounds",
];

/** Cuts a line that has escape sequences in it to what fits. */
function fit(line: string, width: number): string {
  let shown = 0;
  let out = "";
  // biome-ignore lint/suspicious/noControlCharactersInRegex: colours are made of them.
  for (const part of line.split(/(\x1b\[[0-9;]*m)/)) {
    if (part.startsWith("\x1b[")) out += part;
    else {
      out += part.slice(0, Math.max(0, width - shown));
      shown += part.length;
    }
  }
  return out;
}

/** How many requests a screen of this size shows. */
export function requestLines(model: TopModel, { rows }: Size): number {
  const engines = Math.min(model.state?.engines.length ?? 0, 4);
  return Math.max(1, rows - (6 + Math.max(1, engines) + EVENT_LINES));
}

/** The screen: at most `rows` lines of at most `columns` characters. */
export function render(model: TopModel, size: Size, style: Style): string[] {
  const { columns, rows } = size;
  if (columns < LEAST.columns || rows < LEAST.rows) {
    return [cut(`a terminal of at least ${LEAST.columns} x ${LEAST.rows}`, columns)];
  }
  const { state } = model;
  const lines = [headline(model, columns, style)];
  if (model.help)
    return [...lines, "", ...HELP, "", "any key goes back"].slice(0, rows).map((line) => fit(line, columns));
  const engines = engineColumns(model, columns);
  lines.push(`${style.dim}  ${row(engines, undefined, columns - 2)}${style.reset}`);
  const shown = state?.engines ?? [];
  const current = Math.max(
    0,
    shown.findIndex(({ engineId }) => engineId === model.engineId),
  );
  const first = Math.max(0, Math.min(current - 3, shown.length - 4));
  if (shown.length === 0)
    lines.push(state === undefined ? "  waiting for the control plane" : "  no engine has connected");
  for (const engine of shown.slice(first, first + 4)) {
    const share = cacheShare(engine) ?? 0;
    const colour = !engine.connected ? style.dim : share > 0.98 ? style.bad : share > 0.9 ? style.warn : "";
    const mark = engine.engineId === model.engineId && shown.length > 1 ? "> " : "  ";
    lines.push(`${colour}${mark}${row(engines, engine, columns - 2)}${style.reset}`);
  }
  const list = sorted(model);
  const report = model.requests.get(model.engineId ?? "");
  const omitted = (report?.omitted ?? 0) > 0 ? `, ${count(report?.omitted)} more not reported` : "";
  lines.push("", `${style.dim}  ${row(requestColumns(columns), undefined, columns - 2)}${style.reset}`);
  const space = requestLines(model, size);
  const visible = list.slice(model.scroll, model.scroll + space);
  for (const request of visible) {
    const chosen = request.request === model.request;
    const colour = chosen ? style.chosen : request.state === "waiting" ? style.dim : "";
    lines.push(
      `${colour}${chosen ? "> " : "  "}${row(requestColumns(columns), request, columns - 2)}${style.reset}`,
    );
  }
  for (let i = visible.length; i < space; i++) lines.push("");
  const range =
    list.length === 0
      ? "no requests"
      : `${model.scroll + 1}-${model.scroll + visible.length} of ${list.length}${omitted}`;
  lines.push(`${style.dim}  ${range}${style.reset}  ${detail(model, list)}`);
  const events = model.events.slice(-EVENT_LINES).map((event) => `  ${eventLine(event)}`);
  while (events.length < EVENT_LINES) events.unshift("");
  lines.push(...events.map((line) => `${style.dim}${line}${style.reset}`), footer(model, style));
  return lines.slice(0, rows).map((line) => fit(line, columns));
}
