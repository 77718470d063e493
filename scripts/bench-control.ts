/**
 * What the control plane costs: processor time and memory at 100 rounds a second, and how long a scrape of its
 * metrics takes, with 1,000 requests running. The control plane is the built package, in a process of its own; the
 * engine is one that reports as a loaded engine does. Linux only.
 *
 *     npx -y pnpm@12 bench:control [--seconds N] [--rounds N] [--requests N] [--json]
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { LoadedEngine } from "./bench-control/engine.ts";
import { runnablePackage } from "./bench-control/package.ts";

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "30" },
    rounds: { type: "string", default: "100" },
    requests: { type: "string", default: "1000" },
    json: { type: "boolean", default: false },
  },
});
const [seconds, rounds, requests] = [values.seconds, values.rounds, values.requests].map(Number) as [
  number,
  number,
  number,
];
const CLOCK_TICKS = 100;

/** Processor seconds that a process has used so far, all threads. */
function cpu(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / CLOCK_TICKS;
}

/** Most memory that a process had, in MB. */
function peakMemory(pid: number): number {
  return Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1000;
}

/** Per cent of one core over some seconds. */
async function share(pid: number): Promise<number> {
  const [before, began] = [cpu(pid), performance.now()];
  await sleep(seconds * 1000);
  return ((cpu(pid) - before) / (performance.now() - began)) * 1e5;
}

async function scrape(url: string, times: number): Promise<number[]> {
  const took: number[] = [];
  for (let i = 0; i < times; i++) {
    const began = performance.now();
    await (await fetch(`${url}/metrics`)).text();
    took.push(performance.now() - began);
    await sleep(20);
  }
  return took.sort((a, b) => a - b);
}

/** A dashboard that shows everything, as a stream that is read. */
async function watch(url: string): Promise<{ close(): void; bytes(): number }> {
  const abort = new AbortController();
  let bytes = 0;
  const response = await fetch(`${url}/api/events?requests=1`, { signal: abort.signal });
  void (async () => {
    for await (const chunk of response.body ?? []) bytes += chunk.length;
  })().catch(() => {});
  return { close: () => abort.abort(), bytes: () => bytes };
}

async function start(): Promise<{ child: ChildProcess; endpoint: string; url: string }> {
  const built = await runnablePackage();
  const script = join(import.meta.dirname, "bench-control", "plane.mjs");
  const child = spawn(process.execPath, [script, built], { stdio: ["ignore", "pipe", "inherit"] });
  const [line] = await once(createInterface({ input: child.stdout as NodeJS.ReadableStream }), "line");
  return { child, ...JSON.parse(line) };
}

const round = (value: number) => Math.round(value * 100) / 100;
const { child, endpoint, url } = await start();
const pid = child.pid as number;
const engine = new LoadedEngine(endpoint, { rounds, requests });
try {
  await sleep(3000);
  const unwatched = await share(pid);
  const watching = await watch(url);
  await sleep(2000);
  const watched = await share(pid);
  const times = await scrape(url, 100);
  watching.close();
  const at = (part: number) =>
    round(times[Math.min(times.length - 1, Math.floor(times.length * part))] as number);
  const result = {
    node: process.version,
    rounds,
    requests,
    cpuPercent: round(unwatched),
    cpuPercentWithDashboard: round(watched),
    peakMemoryMB: round(peakMemory(pid)),
    scrapeMs: { median: at(0.5), p99: at(0.99) },
  };
  if (watching.bytes() === 0) throw new Error("nothing was streamed");
  const lines = [
    `control plane, ${rounds} rounds/s, ${requests} requests, Node ${process.version}`,
    `processor            ${result.cpuPercent} % of one core`,
    `with a dashboard     ${result.cpuPercentWithDashboard} % of one core`,
    `memory, peak         ${result.peakMemoryMB} MB`,
    `scrape of /metrics   ${result.scrapeMs.median} ms median, ${result.scrapeMs.p99} ms p99`,
  ];
  process.stdout.write(`${values.json ? JSON.stringify(result) : lines.join("\n")}\n`);
} finally {
  engine.close();
  child.kill("SIGTERM");
  await once(child, "exit");
}
