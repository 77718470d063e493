import { useState } from "preact/hooks";
import { clock, compact, full } from "../lib/format.ts";
import type { Row } from "../lib/requests.ts";
import { type Round, sawtooth } from "../lib/rounds.ts";
import { useSize } from "../ui/hooks.ts";

interface TimelineProps {
  readonly rounds: readonly Round[];
  readonly row: Row | undefined;
}

/** Rounds of one request over its length: what is resident, what full KV would be, each round a drop. */
export function Timeline({ rounds, row }: TimelineProps) {
  const [asTable, setAsTable] = useState(false);
  return (
    <section aria-labelledby="rounds-title" class="part">
      <div class="part-title">
        <h3 id="rounds-title">Rounds</h3>
        <span class="muted small">
          {rounds.length === 0
            ? "none seen since this page was opened"
            : `${full(rounds.length)} seen; resident tokens over the logical length`}
        </span>
        <button
          type="button"
          class="button quiet end"
          aria-pressed={asTable}
          onClick={() => setAsTable(!asTable)}
        >
          {asTable ? "Chart" : "Table"}
        </button>
      </div>
      {asTable ? <RoundTable rounds={rounds} /> : <Drawing rounds={rounds} row={row} />}
    </section>
  );
}

const HEIGHT = 124;
/** Rounds drawn at once: more of them cannot be told apart. */
const MOST_DRAWN = 32;
const LEFT = 40;
const BOTTOM = 20;
const TOP = 8;

function Drawing({ rounds, row }: TimelineProps) {
  const [ref, { width }] = useSize<HTMLDivElement>();
  const corners = sawtooth(rounds.slice(-MOST_DRAWN), row);
  const first = corners[0]?.computed ?? 0;
  const end = Math.max(row?.computed ?? 0, corners.at(-1)?.computed ?? 0, first + 1);
  const budget = row?.budget ?? rounds.at(-1)?.budget ?? 0;
  const highest = Math.max(budget, ...corners.map(({ resident }) => resident), 1);
  // Full KV runs out of the picture when it is far above: what rounds do is what is to be seen.
  const step = niceStep(Math.min(end, highest * 1.35) / 3);
  const top = Math.ceil(Math.min(end, highest * 1.2) / step) * step;
  const marks = Array.from({ length: Math.round(top / step) + 1 }, (_, i) => i * step);
  const x = (tokens: number) => LEFT + ((tokens - first) / (end - first)) * Math.max(1, width - LEFT - 8);
  const y = (tokens: number) => HEIGHT - BOTTOM - (tokens / top) * (HEIGHT - BOTTOM - TOP);
  const line = corners.map(({ computed, resident }) => `${x(computed)},${y(resident)}`).join(" ");
  const begin = corners[0];
  const area = begin && `${x(begin.computed)},${y(0)} ${line} ${x(corners.at(-1)?.computed ?? 0)},${y(0)}`;
  const fullTo = Math.min(end, top);
  const label =
    rounds.length === 0
      ? "No round seen yet"
      : `${rounds.length} rounds from length ${rounds[0]?.computed} to ${rounds.at(-1)?.computed}; ${rounds.at(-1)?.evictedTotal} tokens evicted in all`;
  return (
    <div ref={ref} class="timeline">
      {width > 0 && (
        <svg width={width} height={HEIGHT} role="img" aria-label={label}>
          {marks.map((mark) => (
            <g key={mark}>
              <path class="gridline" d={`M${LEFT} ${y(mark)}H${width - 8}`} />
              <text class="tick" x={LEFT - 6} y={y(mark) + 4} text-anchor="end">
                {compact(mark)}
              </text>
            </g>
          ))}
          <text class="tick" x={LEFT} y={HEIGHT - 5}>
            {compact(first)}
          </text>
          <text class="tick" x={width - 8} y={HEIGHT - 5} text-anchor="end">
            {compact(end)} tokens
          </text>
          {fullTo > first && (
            <path class="full-line" d={`M${x(first)} ${y(first)}L${x(fullTo)} ${y(fullTo)}`} />
          )}
          {budget > 0 && budget <= top && (
            <>
              <path class="budget-line" d={`M${LEFT} ${y(budget)}H${width - 8}`} />
              <text class="tick budget" x={LEFT + 6} y={y(budget) + 14}>
                budget {full(budget)}
              </text>
            </>
          )}
          {area && <polygon class="resident-area" points={area} />}
          <polyline class="resident-line" points={line} />
        </svg>
      )}
    </div>
  );
}

/** 1, 2 or 5 times a power of ten, at least `least`. */
function niceStep(least: number): number {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, least)));
  return ([1, 2, 5, 10].find((n) => n * power >= least) ?? 10) * power;
}

function RoundTable({ rounds }: { readonly rounds: readonly Round[] }) {
  return (
    <section class="scroll" tabIndex={0} aria-label="Rounds of this request">
      <table class="plain">
        <thead>
          <tr>
            <th scope="col">Time</th>
            <th scope="col">Step</th>
            <th scope="col">Length</th>
            <th scope="col">Evicted</th>
            <th scope="col">Resident</th>
            <th scope="col">Blocks back</th>
            <th scope="col">Copied</th>
            <th scope="col">Rev.</th>
          </tr>
        </thead>
        <tbody>
          {[...rounds].reverse().map((round) => (
            <tr key={round.id}>
              <td>{clock(round.time)}</td>
              <td>{full(round.step)}</td>
              <td>{full(round.computed)}</td>
              <td>{full(round.evicted)}</td>
              <td>{full(round.computed - round.evictedTotal)}</td>
              <td>{full(round.blocksReclaimed)}</td>
              <td>{full(round.blocksCopied)}</td>
              <td>{round.revision}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}
