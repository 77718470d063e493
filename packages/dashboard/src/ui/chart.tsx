import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { clock } from "../lib/format.ts";
import { type History, type Series, WINDOW } from "../lib/history.ts";
import { announcement, dark } from "../state/page.ts";
import { samples } from "../state/store.ts";
import { useSize } from "./hooks.ts";

export interface ChartSeries {
  readonly key: Series;
  readonly label: string;
  /** Custom property that holds its colour. */
  readonly colour: string;
  readonly dashed?: boolean;
  readonly filled?: boolean;
  readonly axis: "left" | "right";
  format(value: number): string;
}

export interface ChartProps {
  readonly title: string;
  readonly history: History;
  readonly series: readonly ChartSeries[];
  /** Labels of the axes' ticks. */
  readonly left: (value: number) => string;
  readonly right?: (value: number) => string;
  /** Upper end of the right axis, where it is fixed. */
  readonly rightMax?: number;
}

const SYNC = "triattn";

/** The last ten minutes of some series; its cursor is shared with the page's other charts. */
export function Chart(props: ChartProps) {
  const { title, history, series } = props;
  const [ref, { width, height }] = useSize<HTMLDivElement>();
  const [hidden, setHidden] = useState<ReadonlySet<Series>>(new Set());
  const [cursor, setCursor] = useState<number | null>(null);
  const plot = useRef<uPlot | undefined>(undefined);
  const colours = dark.value;
  const ready = width > 0 && height > 0;

  useEffect(() => {
    const target = ref.current;
    if (target === null || !ready) return;
    const chart = new uPlot(options(props, hidden, setCursor), data(history, series), target);
    plot.current = chart;
    return () => {
      plot.current = undefined;
      chart.destroy();
    };
    // uPlot takes its options once: what they depend on makes it anew.
  }, [ready, colours, history]);
  useEffect(() => {
    if (ready) plot.current?.setSize({ width, height });
  }, [width, height, ready]);
  useEffect(() => {
    series.forEach(({ key }, i) => {
      plot.current?.setSeries(i + 1, { show: !hidden.has(key) });
    });
  }, [hidden]);
  const version = samples.value;
  useEffect(() => {
    plot.current?.setData(data(history, series));
  }, [version]);

  const last = history.times.length - 1;
  const at = cursor !== null && cursor <= last ? cursor : last;
  const value = ({ key, format }: ChartSeries, index: number): string => {
    const number = history.columns[key][index];
    return number == null ? "–" : format(number);
  };
  const summary = series.map((one) => `${one.label} ${value(one, last)}`).join(", ");
  const onKeyDown = (event: KeyboardEvent) => {
    const chart = plot.current;
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
    if (chart === undefined || step === undefined || last < 0) return;
    event.preventDefault();
    const index = Math.min(last, Math.max(0, at + step));
    chart.setCursor({ left: chart.valToPos(history.times[index] ?? 0, "x"), top: 10 });
    announcement.value = [
      clock((history.times[index] ?? 0) * 1000),
      ...series.map((one) => `${one.label} ${value(one, index)}`),
    ].join(", ");
  };
  return (
    <section class="card chart" aria-label={title}>
      <header>
        <h2>{title}</h2>
        <div class="legend">
          {series.map((one) => (
            <button
              key={one.key}
              type="button"
              aria-pressed={!hidden.has(one.key)}
              title={hidden.has(one.key) ? `Show ${one.label}` : `Hide ${one.label}`}
              onClick={() => {
                const next = new Set(hidden);
                if (!next.delete(one.key)) next.add(one.key);
                setHidden(next);
              }}
            >
              <svg width="16" height="8" aria-hidden="true" class={`stroke ${one.colour}`}>
                <path d="M0 4h16" stroke-width="2.5" stroke-dasharray={one.dashed ? "4 3" : undefined} />
              </svg>
              <span>{one.label}</span>
              <b>{value(one, at)}</b>
            </button>
          ))}
        </div>
        <span class="end muted small">
          {cursor !== null && at >= 0 ? clock((history.times[at] ?? 0) * 1000) : span(history)}
        </span>
      </header>
      <div
        ref={ref}
        class="plot"
        role="application"
        aria-roledescription="chart"
        aria-label={`${title}: now ${summary}. Arrow keys read earlier values.`}
        tabIndex={0}
        onKeyDown={onKeyDown}
        onBlur={() => plot.current?.setCursor({ left: -10, top: -10 })}
      />
      {last < 1 && (
        <p class="plot-empty muted small">Drawn from now on: charts start when the page is opened.</p>
      )}
    </section>
  );
}

/** What the chart shows, in words. */
function span({ times }: History): string {
  const [first] = times;
  if (first === undefined) return "";
  return (times.at(-1) ?? 0) - first < WINDOW ? `since ${clock(first * 1000)}` : "last 10 min";
}

function data(history: History, series: readonly ChartSeries[]): uPlot.AlignedData {
  return history.get(...series.map(({ key }) => key)) as uPlot.AlignedData;
}

function options(
  { series, left, right, rightMax }: ChartProps,
  hidden: ReadonlySet<Series>,
  setCursor: (index: number | null) => void,
): uPlot.Options {
  const style = getComputedStyle(document.documentElement);
  const colour = (name: string) => style.getPropertyValue(`--${name}`).trim();
  const font = `11px ${style.getPropertyValue("--font")}`;
  const axis = {
    stroke: colour("muted"),
    font,
    grid: { stroke: colour("grid"), width: 1 },
    ticks: { show: false },
  };
  const fromZero = (_: uPlot, _min: number, max: number): [number, number] => [0, max > 0 ? max * 1.12 : 1];
  return {
    width: 100,
    height: 100,
    padding: [8, right === undefined ? 14 : 4, 0, 0],
    legend: { show: false },
    cursor: {
      sync: { key: SYNC, setSeries: false },
      drag: { x: false, y: false },
      points: { size: 6 },
    },
    scales: {
      // Ten minutes, or what there is of them.
      x: { time: true, range: (_, min, max) => [Math.max(max - WINDOW, Math.min(min, max - 60)), max] },
      left: { range: fromZero },
      ...(right && { right: { range: rightMax === undefined ? fromZero : [0, rightMax] } }),
    },
    axes: [
      {
        ...axis,
        size: 24,
        space: 70,
        values: (_, ticks) => ticks.map((tick) => clock(tick * 1000).slice(0, tick % 60 === 0 ? 5 : 8)),
        incrs: [15, 30, 60, 120, 300],
      },
      { ...axis, scale: "left", size: 52, space: 34, values: (_, ticks) => ticks.map(left) },
      ...(right
        ? [
            {
              ...axis,
              scale: "right",
              side: 1 as const,
              size: 46,
              space: 34,
              grid: { show: false },
              values: (_: uPlot, ticks: number[]) => ticks.map(right),
            },
          ]
        : []),
    ],
    series: [
      {},
      ...series.map(
        (one): uPlot.Series => ({
          label: one.label,
          scale: one.axis,
          stroke: colour(one.colour),
          width: one.dashed ? 1.5 : 2,
          show: !hidden.has(one.key),
          points: { show: false },
          ...(one.dashed && { dash: [5, 4] }),
          ...(one.filled && { fill: `${colour(one.colour)}22` }),
        }),
      ),
    ],
    hooks: { setCursor: [(chart) => setCursor(chart.cursor.idx ?? null)] },
  };
}

/** Keeps one object while the series stay the same. */
export function useSeries(make: () => ChartSeries[]): ChartSeries[] {
  return useMemo(make, []);
}
