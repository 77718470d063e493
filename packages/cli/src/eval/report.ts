import type { Arm } from "./arms.ts";
import { bootstrap, type Comparison, compare, type Interval, wilson } from "./bootstrap.ts";
import type { Batch, Row } from "./rows.ts";
import type { Measure, Task } from "./task.ts";

/** One arm on one task. */
export interface Result {
  readonly policy: string;
  /** `1/8`, `budget 2048`; null for full KV. */
  readonly keep: string | null;
  readonly pin: Arm["pin"];
  /** Of the task's first measure: what is right, of how much. */
  readonly exact: number;
  readonly total: number;
  /** 95 % interval of exact / total, or of the mean of the first measure. */
  readonly ci95: Interval;
  /** Resident at the end, of the tokens that could go; mean over requests. */
  readonly keptRatio: number;
  readonly rounds: number;
  readonly tokensEvicted: number;
  readonly tokensGenerated: number;
  /** Of the arm's batch, in which all tasks run beside one another; so is the next one. */
  readonly preemptions: number;
  /** Prefill included; null where texts are scored, requests end when they are wrong, or a run was resumed meanwhile. */
  readonly tokensPerSecond: number | null;
  /** Mean of each measure. */
  readonly figures: Readonly<Record<string, number>>;
  /** First measure, the same items: this arm less full KV, and less random eviction at the same budget. */
  readonly versusFull: Comparison | null;
  readonly versusRandom: Comparison | null;
}

export interface EvalReport {
  readonly command: string;
  readonly model: string;
  /** `count`: how many beside one another, where more than one. */
  readonly engine: {
    readonly name: string;
    readonly version: string;
    readonly runner: string;
    readonly count?: number | undefined;
  } | null;
  readonly seed: number;
  readonly interval: number;
  readonly window: number;
  /** Whether exact traces were generated on after a wrong token. */
  readonly whole: boolean;
  /** Of all batches; starts of engines aside. */
  readonly seconds: number;
  readonly descriptions: Readonly<Record<string, string>>;
  readonly measures: Readonly<Record<string, readonly Measure[]>>;
  readonly tasks: Readonly<Record<string, Readonly<Record<string, Result>>>>;
  readonly published: Readonly<Record<string, readonly string[]>>;
}

/** Names of the control at the same budget and pin. */
export function randomBeside(arm: Arm, arms: readonly Arm[]): Arm | undefined {
  if (arm.keep === null || arm.policy === "random") return undefined;
  return arms.find(
    (other) => other.policy === "random" && other.keep?.text === arm.keep?.text && other.pin === arm.pin,
  );
}

const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
const mean = (values: readonly number[]) => sum(values) / values.length;

/** Puts one arm's rows on one task together; undefined when there is none. */
export function summarize(
  task: Task,
  arm: Arm,
  arms: readonly Arm[],
  rows: readonly Row[],
  batches: readonly Batch[],
  seed: number,
): Result | undefined {
  const of = (label: string) =>
    new Map(rows.filter((row) => row.task === task.name && row.arm === label).map((row) => [row.id, row]));
  const own = of(arm.label);
  if (own.size === 0) return undefined;
  const [first] = task.measures as readonly [Measure, ...Measure[]];
  const value = (row: Row) => row.figures[first.name] as number;
  const values = [...own.values()].map(value);
  const versus = (other: Arm | undefined): Comparison | null => {
    if (other === undefined || other === arm) return null;
    const theirs = of(other.label);
    const both = [...own.values()].filter(({ id }) => theirs.has(id));
    if (both.length === 0) return null;
    return compare(
      both.map(value),
      both.map(({ id }) => value(theirs.get(id) as Row)),
      seed,
    );
  };
  // Right or wrong; everything else is a figure of its own size.
  const counted = first.name === "exact";
  const ran = batches.filter((batch) => batch.task === task.name && batch.arm === arm.label);
  const measured = sum(ran.map(({ batch }) => batch.generatedTokens));
  const tokensGenerated = sum([...own.values()].map((row) => row.generatedTokens));
  const figures = Object.fromEntries(
    task.measures.map(({ name }) => [
      name,
      mean([...own.values()].map((row) => row.figures[name] as number)),
    ]),
  );
  return {
    policy: arm.policy,
    keep: arm.keep?.text ?? null,
    pin: arm.pin,
    exact: sum(values),
    total: values.length,
    ci95: counted ? wilson(sum(values), values.length) : bootstrap(values, seed),
    keptRatio: mean([...own.values()].map((row) => row.keptRatio)),
    rounds: sum([...own.values()].map((row) => row.rounds)),
    tokensEvicted: sum([...own.values()].map((row) => row.tokensEvicted)),
    tokensGenerated,
    preemptions: sum(ran.map(({ batch }) => batch.preemptions)),
    tokensPerSecond:
      task.profile === "generate" && task.untilWrong !== true && measured === tokensGenerated
        ? measured / sum(ran.map(({ batch }) => batch.seconds))
        : null,
    figures,
    versusFull: versus(arms.find(({ keep }) => keep === null)),
    versusRandom: versus(randomBeside(arm, arms)),
  };
}

/** Compressed arms that compressed nothing on a task: figures that would be full KV's under another name. */
export function unfired(report: EvalReport): string[] {
  return Object.entries(report.tasks).flatMap(([task, results]) =>
    Object.entries(results)
      .filter(([, { keep, rounds, tokensEvicted }]) => keep !== null && (rounds === 0 || tokensEvicted === 0))
      .map(([label]) => `${label} on ${task}`),
  );
}

const number = (value: number) =>
  Number.isInteger(value) ? String(value) : Math.abs(value) < 10 ? value.toFixed(3) : value.toFixed(1);
const interval = ([low, high]: Interval) => `${number(low)}–${number(high)}`;

/** Items that have to differ for anything to be said: fewer, and even the same sign on all of them has p > 0.05. */
export const LEAST_DIFFERENT = 6;

/** What an interval says: a win, a loss, or that it does not tell. */
export function verdict(comparison: Comparison, better: Measure["better"]): string {
  const { difference, ci95, above, below } = comparison;
  const [low, high] = ci95;
  const sign = better === "more" ? 1 : -1;
  if (above + below > 0 && above + below < LEAST_DIFFERENT) return "too few to tell";
  if (low > 0 || high < 0) return difference * sign > 0 ? "BETTER" : "WORSE";
  return above + below === 0 ? "same" : "not told apart";
}

function fit(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0)));
  return rows.map((row) =>
    row
      .map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0)))
      .join("  ")
      .trimEnd(),
  );
}

/** What the intervals tell, losses first: arms that are worse or better than full KV or than random eviction. */
export function findings(report: EvalReport): string[] {
  const found: Record<"WORSE" | "BETTER", string[]> = { WORSE: [], BETTER: [] };
  for (const [task, results] of Object.entries(report.tasks)) {
    const first = report.measures[task]?.[0];
    if (first === undefined) continue;
    for (const [label, { versusFull, versusRandom }] of Object.entries(results)) {
      for (const [other, comparison] of [
        ["full KV", versusFull],
        ["random eviction", versusRandom],
      ] as const) {
        if (comparison === null) continue;
        const word = verdict(comparison, first.better);
        if (word !== "WORSE" && word !== "BETTER") continue;
        const { difference, ci95 } = comparison;
        found[word].push(
          `${word} than ${other}: ${label} on ${task}, ${first.name} ${difference > 0 ? "+" : ""}${number(difference)} (${interval(ci95)})`,
        );
      }
    }
  }
  return [...found.WORSE, ...found.BETTER];
}

/** The report for people: a table a task, and beside each arm whether it is better or worse. */
export function table(report: EvalReport): string {
  const { engine, model } = report;
  const parts = [
    `${model}, ${engine === null ? "no engine run" : `${engine.name} ${engine.version}`}, seed ${report.seed}`,
  ];
  for (const [task, results] of Object.entries(report.tasks)) {
    const measures = report.measures[task] ?? [];
    const [first] = measures;
    const head = [
      "arm",
      ...measures.map(({ name }) => name),
      "95 %",
      "n",
      "kept",
      "rounds",
      "evicted",
      "tok/s",
    ];
    const against = ["vs full", "", "vs random", ""];
    const rows = Object.entries(results).map(([label, result]) => {
      const { figures, ci95, total, keptRatio, rounds, tokensEvicted, tokensPerSecond } = result;
      const versus = [result.versusFull, result.versusRandom].flatMap((c) =>
        c === null || first === undefined
          ? ["", ""]
          : [
              `${c.difference > 0 ? "+" : ""}${number(c.difference)} (${interval(c.ci95)})`,
              verdict(c, first.better),
            ],
      );
      return [
        label,
        ...measures.map(({ name }) => number(figures[name] ?? Number.NaN)),
        interval(ci95),
        String(total),
        keptRatio.toFixed(3),
        String(rounds),
        String(tokensEvicted),
        tokensPerSecond === null ? "-" : tokensPerSecond.toFixed(0),
        ...versus,
      ];
    });
    const published = (report.published[task] ?? []).map((line) => `  published: ${line}`);
    parts.push(
      "",
      `${task}: ${report.descriptions[task] ?? ""}`,
      ...fit([[...head, ...against], ...rows]),
      ...published,
    );
  }
  return [...parts, "", ...findings(report)].join("\n").trimEnd();
}
