import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { StatisticsError } from "@triattn/control";
import { CalibrationMessage, type CalibrationProgress, type CalibrationResult } from "./messages.ts";

const TAIL = 20;

/** What ended a calibration that neither finished nor said why. */
export class CalibrationFailed extends Error {
  override name = "CalibrationFailed";
  readonly signal: NodeJS.Signals | null;

  constructor(code: number | null, signal: NodeJS.Signals | null, log: readonly string[]) {
    super(
      ["calibration ended unexpectedly", `(${signal ?? `exit code ${code}`})`, ...log]
        .join("\n")
        .replace("\n", " "),
    );
    this.signal = signal;
  }
}

function parse(line: string): CalibrationMessage | null {
  try {
    return CalibrationMessage.safeParse(JSON.parse(line)).data ?? null;
  } catch {
    return null;
  }
}

/**
 * Runs the Python side of calibration and reports its progress. `abort` ends it in order.
 * Throws StatisticsError for what it refuses, CalibrationFailed when it dies.
 */
export async function runCalibration(
  python: string,
  args: readonly string[],
  environment: NodeJS.ProcessEnv,
  onProgress: (progress: CalibrationProgress) => void,
  abort?: AbortSignal,
): Promise<CalibrationResult> {
  const child = spawn(python, ["-m", "triattn.calibrate", ...args, "--progress", "json"], {
    env: environment,
    stdio: ["ignore", "pipe", "pipe"],
  });
  const stop = () => child.kill("SIGTERM");
  abort?.addEventListener("abort", stop);
  const log: string[] = [];
  let result: CalibrationResult | undefined;
  let refusal: StatisticsError | undefined;
  createInterface({ input: child.stdout }).on("line", (line) => {
    const message = parse(line);
    if (message?.type === "progress") onProgress(message);
    else if (message?.type === "done") result = message;
    else if (message?.type === "error")
      refusal = new StatisticsError(message.field, message.value, message.remedy);
  });
  createInterface({ input: child.stderr }).on("line", (line) => {
    log.push(line);
    if (log.length > TAIL) log.shift();
  });
  try {
    const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((done, fail) => {
      child.once("error", fail);
      child.once("close", (...ended) => done(ended));
    });
    if (refusal !== undefined) throw refusal;
    if (result === undefined || code !== 0) throw new CalibrationFailed(code, signal, log);
    return result;
  } finally {
    abort?.removeEventListener("abort", stop);
  }
}
