/**
 * How fast the page is with 1,000 requests, over a simulated engine in headless Chromium:
 * `pnpm bench:dashboard [REQUESTS] [--first]`. Time from the navigation to the first paint and to the first row of the table,
 * and frames while the table scrolls and its data changes twice a second. A line of JSON last. With `--first`
 * it comes before all else that wants the processors, for a machine that is not calm. Exits with 3 where there is no Chromium.
 */
import { availableParallelism, loadavg } from "node:os";
import type { Page } from "playwright-core";
import { buildPage, isBuilt } from "../build.ts";
import { Browser, findChromium } from "./browser.ts";
import { type FakeServer, startFake } from "./fake/server.ts";
import { putFirst } from "./first.ts";

const LOADS = 7;
const SCROLL_MS = 4000;
const PIXELS_A_SECOND = 3000;

interface Load {
  readonly firstPaint: number;
  readonly firstRow: number;
  /** Processor milliseconds of the page's thread until then. */
  readonly processor: number;
}

/** Processor seconds that the page's thread has used. */
async function processorSeconds(page: Page): Promise<() => Promise<number>> {
  const session = await page.context().newCDPSession(page);
  await session.send("Performance.enable", { timeDomain: "threadTicks" });
  return async () => {
    const { metrics } = await session.send("Performance.getMetrics");
    return metrics.find(({ name }) => name === "TaskDuration")?.value ?? Number.NaN;
  };
}

interface Scroll {
  readonly frames: number;
  readonly framesPerSecond: number;
  /** Milliseconds between frames. */
  readonly median: number;
  readonly p95: number;
  readonly longest: number;
  /** Milliseconds of the longest task of the page's thread. */
  readonly longestTask: number;
  /** Processor milliseconds of the page's thread a frame, whatever else the machine does. */
  readonly processorMs: number;
}

const args = process.argv.slice(2);
const first = args.includes("--first");

async function open(executable: string): Promise<Browser> {
  const browser = await Browser.open(executable);
  if (first) putFirst(browser.directory);
  return browser;
}

/** A browser with an empty cache each time. */
async function load(executable: string, fake: FakeServer): Promise<Load> {
  const browser = await open(executable);
  try {
    const page = await browser.page();
    const used = await processorSeconds(page);
    await page.goto(`${fake.url}/#/requests`);
    await page.locator(".line").first().waitFor();
    const processor = 1000 * (await used());
    const seen = await page.evaluate(async () => {
      const row = performance.now();
      const paints = performance.getEntriesByType("paint");
      const first = paints.find(({ name }) => name === "first-contentful-paint");
      return { firstPaint: first?.startTime ?? Number.NaN, firstRow: row };
    });
    return { ...seen, processor };
  } finally {
    await browser.close();
  }
}

/** Scrolls down and up as a wheel does, a step a frame, and looks at the clock of each frame. */
async function scroll(page: Page): Promise<Scroll> {
  // What runs in the page was compiled here, and calls this to keep the names of functions.
  await page.evaluate("globalThis.__name = (any) => any");
  const used = await processorSeconds(page);
  const before = await used();
  const frames = await page.locator(".grid").evaluate(
    async (grid, { ms, speed }) => {
      let longestTask = 0;
      const observer = new PerformanceObserver((list) => {
        for (const { duration } of list.getEntries()) longestTask = Math.max(longestTask, duration);
      });
      observer.observe({ type: "longtask" });
      const frame = () => new Promise<number>((resolve) => requestAnimationFrame(resolve));
      const began = await frame();
      const times = [began];
      let direction = 1;
      for (let now = began; now - began < ms; ) {
        const before = now;
        now = await frame();
        times.push(now);
        const step = (direction * speed * (now - before)) / 1000;
        const end = grid.scrollHeight - grid.clientHeight;
        grid.scrollTop += step;
        if (grid.scrollTop >= end || grid.scrollTop <= 0) direction = -direction;
      }
      observer.disconnect();
      const gaps = times
        .slice(1)
        .map((time, i) => time - (times[i] ?? time))
        .sort((a, b) => a - b);
      const at = (part: number) => gaps[Math.min(gaps.length - 1, Math.floor(part * gaps.length))] ?? 0;
      const total = (times.at(-1) ?? began) - began;
      return {
        frames: gaps.length,
        framesPerSecond: (1000 * gaps.length) / total,
        median: at(0.5),
        p95: at(0.95),
        longest: at(1),
        longestTask,
      };
    },
    { ms: SCROLL_MS, speed: PIXELS_A_SECOND },
  );
  return { ...frames, processorMs: (1000 * ((await used()) - before)) / frames.frames };
}

const executable = findChromium();
if (executable === undefined) {
  process.stderr.write("no Chromium: install one, or name it by TRIATTN_CHROMIUM\n");
  process.exit(3);
}
if (!isBuilt()) await buildPage();
const requests = Number(args.find((arg) => /^\d+$/.test(arg)) ?? 1000);
if (first) putFirst();
const fake = await startFake({ requests });
try {
  const loads: Load[] = [];
  for (let i = 0; i < LOADS; i++) loads.push(await load(executable, fake));
  const browser = await open(executable);
  const page = await browser.page();
  await page.goto(`${fake.url}/#/requests`);
  await page.locator(".line").first().waitFor();
  await page.waitForTimeout(1000);
  const scrolled = await scroll(page);
  await browser.close();
  const sorted = (pick: (load: Load) => number) => loads.map(pick).sort((a, b) => a - b);
  const round = (value: number) => Math.round(value * 10) / 10;
  const spread = (values: number[]) => ({
    median: round(values[Math.floor(values.length / 2)] ?? Number.NaN),
    longest: round(values.at(-1) ?? Number.NaN),
  });
  const report = {
    requests,
    cores: availableParallelism(),
    load: loadavg().map(round),
    first,
    firstPaintMs: spread(sorted(({ firstPaint }) => firstPaint)),
    firstRowMs: spread(sorted(({ firstRow }) => firstRow)),
    processorMsToFirstRow: spread(sorted(({ processor }) => processor)),
    scroll: Object.fromEntries(Object.entries(scrolled).map(([name, value]) => [name, round(value)])),
  };
  process.stderr.write(
    [
      `${requests} requests, ${report.cores} cores, load average ${report.load.join(" ")}${first ? ", put first" : ""}`,
      `first paint  ${report.firstPaintMs.median} ms (longest of ${LOADS}: ${report.firstPaintMs.longest} ms)`,
      `first row    ${report.firstRowMs.median} ms (longest of ${LOADS}: ${report.firstRowMs.longest} ms), ${report.processorMsToFirstRow.median} ms of them on the page's thread`,
      `scroll       ${report.scroll.framesPerSecond} frames a second, ${report.scroll.median} ms between frames at the median, ${report.scroll.p95} ms at the 95th percentile, longest task ${report.scroll.longestTask} ms; ${report.scroll.processorMs} ms a frame on the page's thread`,
      "",
    ].join("\n"),
  );
  process.stdout.write(`${JSON.stringify(report)}\n`);
} finally {
  await fake.close();
}
