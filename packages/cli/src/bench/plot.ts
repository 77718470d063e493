import { label } from "./report.ts";
import type { Report } from "./schema.ts";

const WIDTH = 720;
const BAR = 22;
const LEFT = 230;

const COLOURS: Readonly<Record<string, string>> = {
  bound: "#8a8f98",
  full: "#c0504d",
  idle: "#8a8f98",
  random: "#6b9bd1",
};

const escaped = (text: string) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

export interface Bar {
  readonly text: string;
  readonly value: number;
  readonly colour: string;
  /** Beside the bar. Default: the value, rounded. */
  readonly label?: string;
}

/** Throughput of every arm. */
export function plot(report: Report): string {
  const bars = report.runs.flatMap((run) =>
    run.arms.map((arm) => ({
      text: `${run.budget === null ? "" : `budget ${run.budget}: `}${label(arm)}`,
      value: arm.tokensPerSecond,
      colour: colourOf(arm.name),
    })),
  );
  const title = `${report.runs[0]?.model ?? ""} decode throughput, ${report.requests} requests, ${report.device}, ${report.engine.name} ${report.engine.version}`;
  return barChart(title, bars, "tokens a second");
}

export const colourOf = (arm: string): string => COLOURS[arm] ?? "#3f7f4f";

/** An SVG bar chart, readable on light and dark pages. */
export function barChart(title: string, bars: readonly Bar[], unit: string): string {
  const most = Math.max(...bars.map((bar) => bar.value), Number.MIN_VALUE);
  const height = 64 + bars.length * BAR;
  const rows = bars.map((bar, index) => {
    const y = 44 + index * BAR;
    const width = ((WIDTH - LEFT - 90) * bar.value) / most;
    return [
      `<text x="${LEFT - 8}" y="${y + 14}" text-anchor="end">${escaped(bar.text)}</text>`,
      `<rect x="${LEFT}" y="${y}" width="${width.toFixed(1)}" height="${BAR - 6}" fill="${bar.colour}"/>`,
      `<text x="${(LEFT + width + 6).toFixed(1)}" y="${y + 14}">${escaped(bar.label ?? Math.round(bar.value).toLocaleString("en-US"))}</text>`,
    ].join("");
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escaped(title)}">
<style>text{font:13px system-ui,sans-serif;fill:#24292f}@media(prefers-color-scheme:dark){text{fill:#e6edf3}}</style>
<text x="8" y="22" style="font-weight:600">${escaped(title)}</text>
${rows.join("\n")}
<text x="${LEFT}" y="${height - 6}">${escaped(unit)}</text>
</svg>
`;
}
