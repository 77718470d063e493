import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import type { Readable } from "node:stream";

export interface Counts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

export interface Stage {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: NodeJS.ProcessEnv;
  /** Minutes after which it is killed, with all it started, and counted as failed. Default 20. */
  readonly minutes?: number;
  /** File that the command leaves its counts in. Without one the stage counts as one test. */
  readonly report?: { readonly kind: "vitest" | "junit"; readonly file: string };
}

export interface Result extends Counts {
  readonly name: string;
  readonly seconds: number;
  /** Its last lines, where its output goes to a file or a pipe; "" on a terminal. */
  readonly end: string;
}

/** Counts of vitest's JSON report. A file that could not even be loaded counts as one failure. */
export function readVitest(text: string): Counts {
  const report = JSON.parse(text) as {
    numPassedTests: number;
    numFailedTests: number;
    numPendingTests: number;
    numTodoTests: number;
    testResults: { status: string; assertionResults: unknown[] }[];
  };
  const broken = report.testResults.filter(
    (f) => f.status === "failed" && f.assertionResults.length === 0,
  ).length;
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + broken,
    skipped: report.numPendingTests + report.numTodoTests,
  };
}

/** Counts of a JUnit report as pytest writes it. */
export function readJunit(text: string): Counts {
  const suites = [...text.matchAll(/<testsuite\b[^>]*>/g)].map(([tag]) => (name: string) => {
    return Number(new RegExp(`\\b${name}="(\\d+)"`).exec(tag)?.[1] ?? 0);
  });
  const sum = (name: string) => suites.reduce((total, suite) => total + suite(name), 0);
  const failed = sum("failures") + sum("errors");
  const skipped = sum("skipped");
  return { passed: sum("tests") - failed - skipped, failed, skipped };
}

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

function killGroup(pid: number | undefined, signal: NodeJS.Signals): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, signal);
  } catch {
    // It has ended.
  }
}

const LINES = 120;

/** The last lines of what a child prints, kept while it is passed on. */
class Tail {
  #text = "";

  readonly watch = (from: Readable | null, to: NodeJS.WritableStream): void => {
    from?.setEncoding("utf8").on("data", (text: string) => {
      to.write(text);
      this.#text = `${this.#text}${text}`.slice(-200 * LINES);
    });
  };

  get lines(): string {
    return this.#text.trimEnd().split("\n").slice(-LINES).join("\n");
  }
}

/** Runs a stage with its output passed through. Never throws: what goes wrong is a failure counted. */
export async function runStage(stage: Stage): Promise<Result> {
  const started = performance.now();
  const tail = new Tail();
  const output = process.stdout.isTTY ? "inherit" : "pipe";
  const code = await new Promise<number>((resolve) => {
    const child = spawn(stage.command, stage.args, {
      stdio: ["ignore", output, output],
      env: { ...process.env, ...stage.env },
      // A group of its own, so that one that hangs can be killed whole.
      detached: true,
    });
    tail.watch(child.stdout, process.stdout);
    tail.watch(child.stderr, process.stderr);
    let stoppedBy: NodeJS.Signals | undefined;
    const forward = (signal: NodeJS.Signals) => {
      stoppedBy = signal;
      killGroup(child.pid, signal);
    };
    for (const signal of SIGNALS) process.once(signal, forward);
    const minutes = stage.minutes ?? 20;
    const limit = setTimeout(() => {
      process.stderr.write(`${stage.name}: killed after ${minutes} minutes\n`);
      killGroup(child.pid, "SIGKILL");
    }, minutes * 60_000);
    child.once("close", () => {
      clearTimeout(limit);
      for (const signal of SIGNALS) process.off(signal, forward);
      if (stoppedBy !== undefined) process.kill(process.pid, stoppedBy);
    });
    child.once("error", (error) => {
      process.stderr.write(`${stage.command}: ${error.message}\n`);
      resolve(1);
    });
    child.once("close", (status) => resolve(status ?? 1));
  });
  const seconds = (performance.now() - started) / 1000;
  return { name: stage.name, seconds, end: tail.lines, ...counts(stage, code) };
}

function counts({ report }: Stage, code: number): Counts {
  const one = { passed: code === 0 ? 1 : 0, failed: code === 0 ? 0 : 1, skipped: 0 };
  if (report === undefined) return one;
  const none = { passed: 0, failed: 1, skipped: 0 };
  if (!existsSync(report.file)) return none;
  const found = { vitest: readVitest, junit: readJunit }[report.kind](readFileSync(report.file, "utf8"));
  // A runner that failed without naming a test that did, or that found nothing to run, is a failure too.
  const silent = (code !== 0 && found.failed === 0) || found.passed + found.failed === 0;
  return silent ? { ...found, failed: 1 } : found;
}
