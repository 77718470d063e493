import type { ApiState } from "@triattn/protocol";
import { NotCompressed } from "../../errors.ts";
import { columns } from "../../text.ts";
import { type Bar, barChart } from "../plot.ts";
import type { Outcome } from "./drive.ts";

export interface Spread {
  readonly mean: number;
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
}

/** What the engines counted while an arm ran. */
export interface Fired {
  readonly rounds: number;
  readonly tokensEvicted: number;
  readonly blocksReclaimed: number;
  readonly preemptions: number;
  readonly stallSeconds: number;
}

export interface LoadArm {
  /** `server`: as the server is; otherwise the budget that each request asked for. */
  readonly name: string;
  readonly budget: number | null;
  readonly requests: number;
  readonly failed: number;
  readonly seconds: number;
  readonly requestsPerSecond: number;
  /** Tokens generated. */
  readonly tokensPerSecond: number;
  readonly tokens: number;
  readonly promptTokens: number;
  /** Time to the first token. */
  readonly ttftMs: Spread;
  /** Between pieces of an answer. */
  readonly itlMs: Spread;
  /** Of an answer after its first token, a token. */
  readonly tpotMs: Spread;
  readonly e2eMs: Spread;
  /** Null where no control plane was asked. */
  readonly fired: Fired | null;
}

export interface LoadReport {
  readonly command: string;
  readonly url: string;
  readonly model: string;
  readonly engines: readonly string[];
  readonly settings: Readonly<Record<string, unknown>>;
  readonly arms: readonly LoadArm[];
}

export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number) =>
    sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;
  const mean = sorted.reduce((sum, value) => sum + value, 0) / Math.max(1, sorted.length);
  return { mean, p50: at(0.5), p90: at(0.9), p99: at(0.99) };
}

/** Sums over all engines of a control plane. */
export function counted({ engines }: ApiState): Fired {
  const sum = (of: (c: NonNullable<ApiState["engines"][number]["counters"]>) => number | string) =>
    engines.reduce((all, { counters }) => all + (counters === null ? 0 : Number(of(counters))), 0);
  return {
    rounds: sum((c) => c.rounds),
    tokensEvicted: sum((c) => c.tokensEvicted),
    blocksReclaimed: sum((c) => c.blocksReclaimed),
    preemptions: sum((c) => c.preemptions),
    stallSeconds: sum((c) => c.stallSeconds),
  };
}

export function difference(after: Fired, before: Fired): Fired {
  const minus = (key: keyof Fired) => after[key] - before[key];
  return {
    rounds: minus("rounds"),
    tokensEvicted: minus("tokensEvicted"),
    blocksReclaimed: minus("blocksReclaimed"),
    preemptions: minus("preemptions"),
    stallSeconds: minus("stallSeconds"),
  };
}

/**
 * The figures of an arm. Throws NotCompressed for one that had a budget and evicted nothing: such figures would be
 * the engine's own.
 */
export function armOf(name: string, budget: number | null, outcome: Outcome, fired: Fired | null): LoadArm {
  const { samples, failures, seconds } = outcome;
  if (budget !== null && budget > 0 && (fired === null || fired.rounds === 0 || fired.tokensEvicted === 0)) {
    const why =
      fired === null
        ? "no control plane says whether it did: give --control, or --budget 0"
        : "no request grew past budget + interval: longer answers, or a smaller budget";
    throw new NotCompressed(`arm ${name}: compression did not fire; ${why}`);
  }
  const tokens = samples.reduce((sum, sample) => sum + sample.tokens, 0);
  const first = ({ start, arrivals }: Outcome["samples"][number]) => (arrivals[0] ?? start) - start;
  return {
    name,
    budget,
    requests: samples.length,
    failed: failures.length,
    seconds,
    requestsPerSecond: samples.length / seconds,
    tokensPerSecond: tokens / seconds,
    tokens,
    promptTokens: samples.reduce((sum, sample) => sum + sample.promptTokens, 0),
    ttftMs: spread(samples.map(first)),
    itlMs: spread(
      samples.flatMap(({ arrivals }) => arrivals.slice(1).map((at, i) => at - (arrivals[i] ?? at))),
    ),
    tpotMs: spread(
      samples
        .filter((sample) => sample.tokens > 1)
        .map((sample) => (sample.end - sample.start - first(sample)) / (sample.tokens - 1)),
    ),
    e2eMs: spread(samples.map(({ start, end }) => end - start)),
    fired,
  };
}

export function loadTable({ url, model, engines, arms }: LoadReport): string {
  const head = [
    "",
    "requests",
    "failed",
    "tok/s",
    "req/s",
    "TTFT p50/p99 ms",
    "ITL p50/p99 ms",
    "E2E p50 s",
    "rounds",
    "evicted",
    "preempted",
  ];
  const pair = ({ p50, p99 }: Spread) => `${p50.toFixed(1)} / ${p99.toFixed(1)}`;
  const rows = arms.map((arm) => [
    arm.name,
    String(arm.requests),
    String(arm.failed),
    arm.tokensPerSecond.toFixed(1),
    arm.requestsPerSecond.toFixed(2),
    pair(arm.ttftMs),
    pair(arm.itlMs),
    (arm.e2eMs.p50 / 1000).toFixed(2),
    String(arm.fired?.rounds ?? "-"),
    String(arm.fired?.tokensEvicted ?? "-"),
    String(arm.fired?.preemptions ?? "-"),
  ]);
  const where = [`${model} at ${url}`, ...engines].join(", ");
  return [where, columns([head, ...rows], 1)].join("\n");
}

export function loadPlot({ model, arms }: LoadReport): string {
  const bars = arms.map(
    (arm): Bar => ({
      text: arm.name,
      value: arm.tokensPerSecond,
      colour: arm.budget === 0 ? "#c0504d" : "#3f7f4f",
    }),
  );
  return barChart(`${model}, tokens generated a second under load`, bars, "tokens a second");
}
