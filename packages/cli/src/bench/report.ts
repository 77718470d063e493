import { NotCompressed } from "../errors.ts";
import type { Arm, Measurement, Report } from "./schema.ts";

/** Arms in which nothing is compressed, and nothing has to be. */
const UNCOMPRESSED: ReadonlySet<string> = new Set(["bound", "full", "idle"]);

/** What an arm is called beside the others: a full arm by the length that its requests grow to. */
export function label(arm: Arm): string {
  return arm.generation === undefined ? arm.name : `${arm.name} ${arm.generation}`;
}

/**
 * Puts the measurements of several processes side by side. Throws NotCompressed for an arm that should have
 * compressed and did not: such a figure would be the engine's own.
 */
export function merge(
  command: string,
  measurements: readonly Measurement[],
  kernels: readonly unknown[] = [],
): Report {
  const [first] = measurements;
  if (first === undefined) throw new Error("nothing was measured");
  const arms = measurements.flatMap((measurement) =>
    measurement.arms.map((arm) => ({ model: measurement.model, arm })),
  );
  for (const { arm } of arms) {
    if (!UNCOMPRESSED.has(arm.name) && (arm.rounds === 0 || arm.tokensEvicted === 0)) {
      throw new NotCompressed(`arm ${arm.name} at budget ${arm.budget}: compression did not fire`);
    }
  }
  const runs = new Map<string, Report["runs"][number]>();
  for (const { model, arm } of arms) {
    const key = `${model} ${arm.budget ?? ""}`;
    if (!runs.has(key)) runs.set(key, { model, budget: arm.budget ?? null, arms: [] });
    runs.get(key)?.arms.push(arm);
  }
  const firstToken = (plain: boolean) =>
    measurements.find((m) => m.arms.some((arm) => (arm.name === "bound" || arm.name === "full") === plain))
      ?.firstTokenMs ?? null;
  return {
    command,
    device: first.device,
    engine: first.engine,
    requests: first.requests,
    interval: first.interval,
    cacheTokens: first.cacheTokens,
    firstTokenMs: { engine: firstToken(true), idle: firstToken(false) },
    runs: [...runs.values()],
    ratios: ratios([...runs.values()]),
    kernels: [...kernels],
  };
}

/** Every compressed or idle arm over its bound, scored arms over random, and all over full KV of the same model. */
function ratios(runs: Report["runs"]): Report["ratios"] {
  const found: Report["ratios"] = [];
  for (const { model, budget, arms } of runs) {
    if (budget === null) continue;
    const full = runs
      .filter((run) => run.model === model)
      .flatMap((run) => run.arms.filter((arm) => arm.name === "full"));
    const named = (name: string) => arms.filter((arm) => arm.name === name);
    for (const of of arms) {
      const others = [
        ...(of.name === "bound" ? [] : named("bound")),
        ...(UNCOMPRESSED.has(of.name) || of.name === "random" ? [] : named("random")),
        ...(of.name === "idle" ? [] : full),
      ];
      for (const to of others) {
        found.push({
          model,
          budget,
          of: of.name,
          to: label(to),
          ratio: of.tokensPerSecond / to.tokensPerSecond,
        });
      }
    }
  }
  return found;
}

const percent = (value: number) => `${(100 * value).toFixed(1)} %`;

/** The report as lines of text, widths fitted to a terminal. */
export function table(report: Report): string {
  const rows = [["model", "budget", "arm", "tok/s", "step ms", "spread", "rounds", "evicted", "preemptions"]];
  for (const run of report.runs) {
    for (const arm of run.arms) {
      rows.push([
        run.model,
        run.budget === null ? "-" : String(run.budget),
        label(arm),
        arm.tokensPerSecond.toFixed(0),
        arm.stepMs.toFixed(2),
        percent(arm.spread),
        String(arm.rounds),
        String(arm.tokensEvicted),
        String(arm.preemptions),
      ]);
    }
  }
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0))) ?? [];
  const lines = rows.map((row) =>
    row
      .map((cell, column) =>
        column < 3 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0),
      )
      .join("  "),
  );
  const compared = report.ratios.map(
    ({ model, budget, of, to, ratio }) =>
      `${model}, budget ${budget}: ${of} / ${to} = ${ratio >= 1.5 ? `${ratio.toFixed(2)} x` : percent(ratio)}`,
  );
  return [`${report.device}, ${report.engine.name} ${report.engine.version}`, ...lines, "", ...compared].join(
    "\n",
  );
}
