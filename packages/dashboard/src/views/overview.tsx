import { useState } from "preact/hooks";
import { compact, rate } from "../lib/format.ts";
import { samples, state, telemetry } from "../state/store.ts";
import { Chart, useSeries } from "../ui/chart.tsx";
import { Engines } from "./engines.tsx";
import { RecentEvents } from "./events.tsx";

/** Charts, engines and what happened last. */
export function Overview() {
  const [chosen, setChosen] = useState<string | null>(null);
  const engines = state.value?.engines ?? [];
  samples.value;
  const history = telemetry.history(engines.some((e) => e.engineId === chosen) ? chosen : null);
  const residency = useSeries(() => [
    {
      key: "resident",
      label: "Resident tokens",
      colour: "series-resident",
      filled: true,
      axis: "left",
      format: compact,
    },
    { key: "fullKv", label: "Full KV", colour: "series-full", dashed: true, axis: "left", format: compact },
    {
      key: "cacheUse",
      label: "Cache use",
      colour: "series-cache",
      axis: "right",
      format: (v) => `${v.toFixed(0)} %`,
    },
  ]);
  const throughput = useSeries(() => [
    {
      key: "tokensPerSecond",
      label: "Tokens/s",
      colour: "series-tokens",
      filled: true,
      axis: "left",
      format: rate,
    },
    { key: "roundsPerSecond", label: "Rounds/s", colour: "series-rounds", axis: "right", format: rate },
  ]);
  return (
    <div class="overview">
      <div class="charts">
        {engines.length > 1 && (
          <label class="chart-of">
            <span class="muted small">Charts of</span>
            <select
              class="select"
              value={chosen ?? ""}
              onChange={(event) => setChosen(event.currentTarget.value || null)}
            >
              <option value="">all engines</option>
              {engines.map(({ engineId }) => (
                <option key={engineId} value={engineId}>
                  {engineId}
                </option>
              ))}
            </select>
          </label>
        )}
        <Chart
          title="Residency"
          history={history}
          series={residency}
          left={compact}
          right={(v) => `${v} %`}
          rightMax={100}
        />
        <Chart title="Throughput" history={history} series={throughput} left={compact} right={rateTick} />
      </div>
      <div class="side">
        <Engines />
        <RecentEvents />
      </div>
    </div>
  );
}

const rateTick = (value: number): string =>
  value >= 1000 ? compact(value) : String(Number(value.toFixed(2)));
