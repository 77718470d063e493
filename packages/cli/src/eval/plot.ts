import type { EvalReport, Result } from "./report.ts";

const WIDTH = 720;
const HEIGHT = 360;
const [LEFT, RIGHT, TOP, BOTTOM] = [64, 170, 44, 48];
const COLOURS = ["#3f7f4f", "#6b9bd1", "#c0504d", "#d08a2e", "#7a5ea8", "#3a9ca0", "#a0763a", "#b0567f"];

const escaped = (text: string) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

interface Point {
  readonly x: number;
  readonly y: number;
  readonly low: number;
  readonly high: number;
}

interface Line {
  readonly name: string;
  readonly points: readonly Point[];
}

interface Axis {
  readonly title: string;
  readonly log: boolean;
}

function chart(title: string, lines: readonly Line[], horizontal: Axis, vertical: string): string {
  const all = lines.flatMap(({ points }) => points);
  const scale = (value: number) => (horizontal.log ? Math.log2(value) : value);
  const xs = all.map(({ x }) => scale(x));
  const [least, most] = [Math.min(...xs), Math.max(...xs)];
  const bottom = Math.min(0, ...all.map(({ low }) => low));
  const top = Math.max(...all.map(({ high }) => high), bottom + 1e-9);
  const px = (x: number) =>
    LEFT + ((WIDTH - LEFT - RIGHT) * (scale(x) - least)) / Math.max(most - least, 1e-9);
  const py = (y: number) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * (y - bottom)) / (top - bottom);
  const ticks = [...new Set(all.map(({ x }) => x))].sort((a, b) => a - b);
  const shown = ticks.length > 8 ? [ticks[0] as number, ticks.at(-1) as number] : ticks;
  const text = (x: number, y: number, words: string, anchor = "middle") =>
    `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}">${escaped(words)}</text>`;
  const short = (value: number) => (value >= 10 ? value.toFixed(0) : String(Number(value.toPrecision(3))));
  const grid = [0, 0.25, 0.5, 0.75, 1].map((part) => {
    const value = bottom + part * (top - bottom);
    return `<path d="M${LEFT} ${py(value).toFixed(1)}H${WIDTH - RIGHT}" stroke="#8884"/>${text(LEFT - 6, py(value) + 4, short(value), "end")}`;
  });
  const drawn = lines.map(({ name, points }, i) => {
    const colour = name === "full" ? "#8a8f98" : COLOURS[i % COLOURS.length];
    const sorted = [...points].sort((a, b) => a.x - b.x);
    const path = sorted.map(({ x, y }, n) => `${n === 0 ? "M" : "L"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`);
    const marks = sorted.map(({ x, y, low, high }) => {
      const at = px(x).toFixed(1);
      return `<path d="M${at} ${py(low).toFixed(1)}V${py(high).toFixed(1)}" stroke="${colour}" opacity=".5"/><circle cx="${at}" cy="${py(y).toFixed(1)}" r="3.5" fill="${colour}"/>`;
    });
    const label = `<rect x="${WIDTH - RIGHT + 14}" y="${TOP + i * 20}" width="10" height="10" fill="${colour}"/>${text(WIDTH - RIGHT + 30, TOP + 10 + i * 20, name, "start")}`;
    return `<path d="${path.join("")}" fill="none" stroke="${colour}" stroke-width="1.5"/>${marks.join("")}${label}`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${escaped(title)}">
<style>text{font:12px system-ui,sans-serif;fill:#24292f}@media(prefers-color-scheme:dark){text{fill:#e6edf3}}</style>
<text x="8" y="22" style="font-weight:600">${escaped(title)}</text>
${grid.join("")}
${shown.map((x) => text(px(x), HEIGHT - BOTTOM + 18, short(x))).join("")}
${text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, horizontal.title)}${text(LEFT, TOP - 8, vertical, "start")}
${drawn.join("\n")}
</svg>
`;
}

const name = ({ policy, pin }: Result, pins: boolean) =>
  `${policy}${pins && pin === "none" ? " unpinned" : ""}`;

function lines(results: readonly Result[], x: (result: Result) => number | null): Line[] {
  const pins = new Set(results.map(({ pin }) => pin)).size > 1;
  const found = new Map<string, Point[]>();
  for (const result of results) {
    const at = x(result);
    if (at === null || !(at > 0)) continue;
    const point = { x: at, y: result.exact / result.total, low: result.ci95[0], high: result.ci95[1] };
    const key = name(result, pins);
    found.set(key, [...(found.get(key) ?? []), point]);
  }
  return [...found].map(([label, points]) => ({ name: label, points }));
}

/** The plots of a report, by file name: a task's first measure against what is kept, and against tokens a second. */
export function plots(report: EvalReport): Record<string, string> {
  const files: Record<string, string> = {};
  for (const [task, byArm] of Object.entries(report.tasks)) {
    const results = Object.values(byArm);
    const measure = report.measures[task]?.[0]?.name ?? "";
    const kept = lines(results, ({ keptRatio }) => keptRatio);
    if (kept.length === 0) continue;
    const title = `${task}: ${report.model}, seed ${report.seed}, 95 % intervals`;
    files[`${task}-budget.svg`] = chart(
      title,
      kept,
      { title: "part of the tokens kept", log: true },
      measure,
    );
    const fast = lines(results, ({ tokensPerSecond }) => tokensPerSecond);
    if (fast.length > 0) {
      files[`${task}-speed.svg`] = chart(title, fast, { title: "tokens a second", log: false }, measure);
    }
  }
  return files;
}
