import type { ApiKept } from "@triattn/protocol";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { full, percent, toNumber } from "../lib/format.ts";
import { coarse, colour, type HeatMap, type HeatMapBy, heatMap, pixels } from "../lib/heatmap.ts";

/** Of the map, in pixels; with a row for each head there are often more rows than that. */
const HEIGHT = 222;
const SLICES = 8;

/** What the newest round of the chosen request kept, by layer and KV head over the positions. */
export function KeptView({ report }: { readonly report: ApiKept | null }) {
  const [by, setBy] = useState<HeatMapBy>("heads");
  const [asTable, setAsTable] = useState(false);
  const map = useMemo(() => (report === null ? null : read(report, by)), [report, by]);
  return (
    <section aria-labelledby="kept-title" class="part">
      <div class="part-title">
        <h3 id="kept-title">Kept tokens</h3>
        {report !== null && (
          <span class="muted small">
            {full(report.resident)} of {full(report.computed)}, step {full(toNumber(report.step))}
          </span>
        )}
        <div class="end">
          <fieldset class="segments">
            <legend class="sr-only">Rows of the map</legend>
            <button type="button" aria-pressed={by === "heads"} onClick={() => setBy("heads")}>
              Heads
            </button>
            <button type="button" aria-pressed={by === "layers"} onClick={() => setBy("layers")}>
              Layers
            </button>
          </fieldset>
          <button
            type="button"
            class="button quiet"
            aria-pressed={asTable}
            onClick={() => setAsTable(!asTable)}
          >
            {asTable ? "Map" : "Table"}
          </button>
        </div>
      </div>
      {map === null ? (
        <p class="muted small waiting">Shown after this request's next round.</p>
      ) : typeof map === "string" ? (
        <p class="problem">{map}</p>
      ) : asTable ? (
        <CoarseTable map={map} />
      ) : (
        <MapView map={map} />
      )}
    </section>
  );
}

function read(report: ApiKept, by: HeatMapBy): HeatMap | string {
  try {
    return heatMap(report, by);
  } catch (error) {
    return `This report cannot be shown: ${(error as Error).message}`;
  }
}

interface Cell {
  readonly row: number;
  readonly bin: number;
}

function MapView({ map }: { readonly map: HeatMap }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [cell, setCell] = useState<Cell | null>(null);
  useEffect(() => {
    const element = canvas.current;
    const context = element?.getContext("2d");
    if (element == null || context == null) return;
    element.width = map.bins;
    element.height = map.rows;
    context.putImageData(new ImageData(pixels(map), map.bins, map.rows), 0, 0);
  }, [map]);
  const at = (event: MouseEvent): Cell => {
    const box = (event.currentTarget as HTMLElement).getBoundingClientRect();
    return within({
      row: Math.floor(((event.clientY - box.top) / box.height) * map.rows),
      bin: Math.floor(((event.clientX - box.left) / box.width) * map.bins),
    });
  };
  const within = ({ row, bin }: Cell): Cell => ({
    row: Math.min(map.rows - 1, Math.max(0, row)),
    bin: Math.min(map.bins - 1, Math.max(0, bin)),
  });
  const onKeyDown = (event: KeyboardEvent) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const from = cell ?? { row: 0, bin: 0 };
    const far = event.shiftKey ? 10 : 1;
    setCell(within({ row: from.row + far * (step[0] ?? 0), bin: from.bin + far * (step[1] ?? 0) }));
  };
  const length = map.edges.at(-1) ?? 0;
  const shown = cell === null ? null : within(cell);
  return (
    <div class="map">
      <div class="map-rows muted small" aria-hidden="true">
        {layerMarks(map).map((layer) => (
          <span key={layer}>{layer}</span>
        ))}
      </div>
      <div
        class="map-frame"
        role="application"
        aria-roledescription="heat map"
        aria-label={`Share of tokens kept: ${map.rows} rows of layers and KV heads, ${full(length)} positions. Arrow keys read it; the button Table shows it as a table.`}
        aria-describedby="map-cell"
        tabIndex={0}
        style={{ height: `${HEIGHT}px` }}
        onKeyDown={onKeyDown}
        onMouseMove={(event) => setCell(at(event))}
        onMouseLeave={() => setCell(null)}
      >
        <canvas ref={canvas} class={map.rows <= HEIGHT ? "crisp" : undefined} aria-hidden="true" />
        {shown !== null && (
          <span
            class="map-cursor"
            style={{
              left: `${(100 * shown.bin) / map.bins}%`,
              top: `${(100 * shown.row) / map.rows}%`,
              width: `${100 / map.bins}%`,
              height: `${100 / map.rows}%`,
            }}
          />
        )}
      </div>
      <div class="map-axis muted small" aria-hidden="true">
        <span>0</span>
        <span>position, by layer</span>
        <span>{full(length)}</span>
      </div>
      <div class="map-foot small">
        <Scale />
        <output id="map-cell" aria-live="polite">
          {shown === null ? "Point at a cell, or use the arrow keys" : describe(map, shown)}
        </output>
      </div>
    </div>
  );
}

function describe(map: HeatMap, { row, bin }: Cell): string {
  const from = map.edges[bin] ?? 0;
  const to = (map.edges[bin + 1] ?? 0) - 1;
  if (to < from) return `${map.labels[row]}: no position`;
  const count = map.counts[row * map.bins + bin] ?? 0;
  const kept = Number(count.toFixed(1));
  const where = from === to ? `position ${full(from)}` : `positions ${full(from)} to ${full(to)}`;
  return `${map.labels[row]}, ${where}: ${kept} of ${to - from + 1} kept`;
}

/** First, middle and last layer, at the map's side. */
function layerMarks({ layers }: HeatMap): string[] {
  return [...new Set([0, Math.floor((layers - 1) / 2), layers - 1])].map(String);
}

function Scale() {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const context = canvas.current?.getContext("2d");
    if (context == null) return;
    for (let i = 0; i < 64; i++) {
      context.fillStyle = `rgb(${colour((i / 63) ** 2).join(" ")})`;
      context.fillRect(i, 0, 1, 1);
    }
  }, []);
  return (
    <span class="scale">
      <span>0</span>
      <canvas ref={canvas} width="64" height="1" aria-hidden="true" />
      <span>all kept; the middle is a quarter</span>
    </span>
  );
}

function CoarseTable({ map }: { readonly map: HeatMap }) {
  const length = map.edges.at(-1) ?? 0;
  const edge = (i: number) => full(Math.round((i * length) / SLICES));
  return (
    <section class="scroll" tabIndex={0} aria-label="Share of tokens kept, as a table">
      <table class="plain">
        <caption class="sr-only">Share of the tokens kept, by part of the positions</caption>
        <thead>
          <tr>
            <th scope="col">Positions from</th>
            {Array.from({ length: SLICES }, (_, i) => (
              <th scope="col" key={edge(i)}>
                {edge(i)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {coarse(map, SLICES).map(({ label, shares }) => (
            <tr key={label}>
              <th scope="row">{label}</th>
              {shares.map((share, i) => (
                <td key={edge(i)}>{percent(share)}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}
