import type { Random } from "../random.ts";
import type { Draft, TraceTask } from "./trace.ts";

const LETTERS = [..."ABCDEFGHIJKLMNOPQRSTUVWXYZ"];
const LINE = 6;
const MOST_ITEMS = 9;
const MOST_DEPTH = 8;

interface Rule {
  readonly symbol: string;
  readonly items: readonly string[];
  /** Lines that its evaluation takes. */
  readonly lines: number;
  readonly depth: number;
}

/** A digit takes a line; a rule one to enter it, its own, and one to come back. */
function linesOf(item: string, rules: ReadonlyMap<string, Rule>): number {
  const below = rules.get(item);
  return below === undefined ? 1 : 2 + below.lines;
}

function lineCount(items: readonly string[], rules: ReadonlyMap<string, Rule>): number {
  return items.reduce((sum, item) => sum + linesOf(item, rules), 0);
}

function rule(symbol: string, items: readonly string[], rules: ReadonlyMap<string, Rule>): Rule {
  const depth = 1 + Math.max(0, ...items.map((item) => rules.get(item)?.depth ?? 0));
  return { symbol, items, lines: lineCount(items, rules), depth };
}

/** Rules whose first one takes between 0.9 and 1 times `lines` lines; undefined when luck had it otherwise. */
function attempt(random: Random, lines: number): Rule[] | undefined {
  const names = random.shuffle(LETTERS);
  const rules = new Map<string, Rule>();
  const digit = () => String(random.whole(0, 9));
  const take = () => names.pop() as string;
  const wanted = Math.min(3 + Math.floor(Math.log2(Math.max(lines, 8))), 12);
  while (rules.size < wanted) {
    const usable = [...rules.values()].filter((r) => r.depth < MOST_DEPTH - 1 && r.lines < lines / 3);
    const items = Array.from({ length: random.whole(2, 5) }, () =>
      usable.length > 0 && random.next() < 0.5 ? random.pick(usable.slice(-4)).symbol : digit(),
    );
    const made = rule(take(), items, rules);
    if (made.lines < lines) rules.set(made.symbol, made);
    if (names.length < 4) break;
  }
  let left = lines;
  const top: string[] = [];
  while (top.length < MOST_ITEMS && left > 0) {
    const fitting = [...rules.values()].filter((r) => r.lines + 2 <= left && r.depth < MOST_DEPTH);
    fitting.sort((a, b) => b.lines - a.lines);
    const item =
      fitting.length === 0 || random.next() < 0.15 ? digit() : random.pick(fitting.slice(0, 3)).symbol;
    top.push(item);
    left -= linesOf(item, rules);
  }
  if (left > lines * 0.1) return undefined;
  const first = rule(take(), random.shuffle(top), rules);
  const used = new Set<string>();
  const mark = (symbol: string, items: readonly string[]) => {
    if (used.has(symbol)) return;
    used.add(symbol);
    for (const item of items) {
      const below = rules.get(item);
      if (below !== undefined) mark(item, below.items);
    }
  };
  mark(first.symbol, first.items);
  return [first, ...[...rules.values()].filter((r) => used.has(r.symbol))];
}

/** Evaluates a grammar, one line an item: depth, rule, position, item, running sum modulo 10; `<`: back from a rule. */
export function evaluate(
  start: string,
  rules: ReadonlyMap<string, readonly string[]>,
): { trace: string; value: number } {
  const lines: string[] = [];
  let value = 0;
  const walk = (symbol: string, depth: number) => {
    for (const [position, item] of (rules.get(symbol) ?? []).entries()) {
      const below = rules.has(item);
      if (!below) value = (value + Number(item)) % 10;
      lines.push(`${depth}${symbol}${position}${item}${value}\n`);
      if (!below) continue;
      walk(item, depth + 1);
      // So that one line never has to leave several rules at once.
      lines.push(`${depth}${symbol}${position}<${value}\n`);
    }
  };
  walk(start, 0);
  return { trace: lines.join(""), value };
}

function draft(random: Random, length: number): Draft {
  const lines = Math.floor((length - 4) / LINE);
  let rules: Rule[] | undefined;
  while (rules === undefined) rules = attempt(random, lines);
  const start = (rules[0] as Rule).symbol;
  const table = new Map(rules.map(({ symbol, items }) => [symbol, items]));
  const { trace, value } = evaluate(start, table);
  const answer = `=${value}\n`;
  const shown = random.shuffle(rules).map(({ symbol, items }) => `${symbol}=${items.join("")}\n`);
  return {
    prompt: `G\n${shown.join("")}?${start}\n`,
    expected: trace + answer,
    answer,
    metadata: { start, rules: Object.fromEntries(table), value, depth: rules[0]?.depth },
  };
}

/** Recursive evaluation of a small grammar. */
export const grammar: TraceTask = {
  name: "grammar",
  description: "recursive evaluation of a small grammar, line by line",
  least: 40,
  draft,
};
