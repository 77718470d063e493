import { readFileSync } from "node:fs";
import { ConfigError } from "@triattn/control";
import { z } from "zod";
import { Report } from "../bench/schema.ts";
import { findGpu, type Gpu } from "./gpus.ts";
import { divide, type Memory } from "./memory.ts";
import { type Model, readModel } from "./model.ts";
import { type Batch, type Constants, roofline, roundMs, stepMs, type Work, work } from "./roofline.ts";

/** A measured decode step that a prediction can stand beside. */
export interface Point {
  readonly name: string;
  readonly model: Model;
  readonly gpu: Gpu;
  readonly memory: Memory;
  readonly batch: Batch;
  /** Rounds of one step; 0 where nothing is compressed. */
  readonly rounds: number;
  readonly round: { readonly budget: number; readonly interval: number; readonly readsKeys: boolean };
  readonly measuredMs: number;
  readonly work: Work;
}

const Steps = z.object({
  device: z.string(),
  model: z.string(),
  steps: z.array(z.object({ requests: z.int(), tokens: z.int(), stepMs: z.number() })).min(1),
});

/** Policies that score without reading a key. */
const BLIND: ReadonlySet<string> = new Set(["random", "streaming"]);

function setting(name: string, device: string) {
  const model = readModel(name);
  const gpu = findGpu(device);
  return {
    model,
    gpu,
    memory: divide(model, gpu, { kvDtype: "bfloat16", utilization: 0.92, tensorParallel: 1 }),
  };
}

/** The steps that a benchmark measured: a report of `triattn bench engine`, or a table of steps. Throws ConfigError. */
export function measuredPoints(file: string): { points: Point[]; cacheTokens: number | null } {
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(file, "utf8"));
  } catch (error) {
    throw new ConfigError("--check", file, `a JSON file that can be read (${(error as Error).message})`);
  }
  const steps = Steps.safeParse(json);
  if (steps.success) return { points: ofSteps(steps.data), cacheTokens: null };
  const report = Report.safeParse(json);
  if (!report.success) throw new ConfigError("--check", file, "a report of `triattn bench engine`");
  return { points: ofReport(report.data), cacheTokens: report.data.cacheTokens };
}

function ofSteps({ device, model: name, steps }: z.infer<typeof Steps>): Point[] {
  const where = setting(name, device);
  return steps.map(({ requests, tokens, stepMs: measuredMs }) => {
    const batch = { requests, tokens, ragged: false };
    return {
      ...where,
      name: `${requests} × ${tokens}`,
      batch,
      rounds: 0,
      round: { budget: 0, interval: 1, readsKeys: false },
      measuredMs,
      work: work(where.model, where.gpu, where.memory, batch),
    };
  });
}

function ofReport(report: Report): Point[] {
  return report.runs.flatMap((run) => {
    const where = setting(run.model, report.device);
    return run.arms.map((arm): Point => {
      const requests = arm.requests ?? report.requests;
      const tokens = arm.meanResident ?? (arm.generation ?? 0) / 2;
      const batch = { requests, tokens, ragged: arm.generation !== undefined };
      const compresses = !["bound", "full", "idle"].includes(arm.name);
      return {
        ...where,
        name: `${arm.name} ${arm.generation ?? arm.budget ?? ""}`,
        batch,
        rounds: compresses ? requests / report.interval : 0,
        round: { budget: arm.budget ?? 0, interval: report.interval, readsKeys: !BLIND.has(arm.name) },
        measuredMs: arm.stepMs,
        work: work(where.model, where.gpu, where.memory, batch),
      };
    });
  });
}

/** What the roofline says of a point. */
export function predictMs(point: Point, constants: Constants = roofline): number {
  const { model, gpu, memory, rounds, round } = point;
  const decode = stepMs(point.work, point.batch.ragged, constants);
  return decode + (rounds === 0 ? 0 : rounds * roundMs(model, gpu, memory, round, constants));
}

export interface Checked {
  readonly name: string;
  readonly requests: number;
  readonly tokens: number;
  readonly measuredMs: number;
  readonly predictedMs: number;
  /** Predicted over measured, less 1. */
  readonly error: number;
}

export interface Check {
  readonly file: string;
  readonly points: readonly Checked[];
  readonly cacheTokens: {
    readonly measured: number;
    readonly predicted: number;
    readonly error: number;
  } | null;
  /** Of the points' sizes. */
  readonly meanError: number;
  readonly worstError: number;
}

/** Predictions beside a benchmark's measurements. */
export function check(file: string): Check {
  const { points, cacheTokens } = measuredPoints(file);
  const checked = points.map((point): Checked => {
    const predictedMs = predictMs(point);
    const { name, batch, measuredMs } = point;
    const { requests, tokens } = batch;
    return { name, requests, tokens, measuredMs, predictedMs, error: predictedMs / measuredMs - 1 };
  });
  const sizes = checked.map(({ error }) => Math.abs(error));
  const predicted = points[0]?.memory.cacheTokens ?? 0;
  return {
    file,
    points: checked,
    cacheTokens:
      cacheTokens === null ? null : { measured: cacheTokens, predicted, error: predicted / cacheTokens - 1 },
    meanError: sizes.reduce((sum, size) => sum + size, 0) / Math.max(1, sizes.length),
    worstError: Math.max(0, ...sizes),
  };
}
