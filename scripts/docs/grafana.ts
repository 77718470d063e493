/** The Grafana dashboard, docs/operations/grafana.json: `node --import tsx scripts/docs/grafana.ts` writes it. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { root } from "../setup/paths.ts";

export const path = join(root, "docs", "operations", "grafana.json");

const datasource = { type: "prometheus", uid: "$datasource" };
const chosen = '{model=~"$model",engine_id=~"$engine"}';
const rate = (metric: string) => `rate(${metric}${chosen}[$__rate_interval])`;

interface Panel {
  readonly title: string;
  readonly type?: "timeseries" | "stat" | "table";
  readonly unit?: string;
  readonly width?: number;
  readonly description?: string;
  /** Legend → expression. */
  readonly series: Readonly<Record<string, string>>;
}

const rows: readonly { readonly title: string; readonly panels: readonly Panel[] }[] = [
  {
    title: "Now",
    panels: [
      { title: "Engines", type: "stat", width: 4, series: { connected: `sum(triattn:engine_up${chosen})` } },
      {
        title: "Running",
        type: "stat",
        width: 4,
        series: { running: `sum(triattn:requests_running${chosen})` },
      },
      {
        title: "Waiting",
        type: "stat",
        width: 4,
        series: { waiting: `sum(triattn:requests_waiting${chosen})` },
      },
      {
        title: "Tokens a second",
        type: "stat",
        width: 4,
        series: { generated: `sum(${rate("triattn:tokens_generated_total")})` },
      },
      { title: "Budget", type: "stat", width: 4, series: { budget: "triattn:policy_budget_tokens" } },
      {
        title: "Policy",
        type: "stat",
        width: 4,
        series: { "{{policy}} r{{revision}}": "triattn:policy_info" },
      },
    ],
  },
  {
    title: "KV cache",
    panels: [
      {
        title: "Tokens resident",
        series: { "{{model}} {{engine_id}}": `triattn:kv_tokens_resident${chosen}` },
      },
      {
        title: "Cache in use",
        unit: "percentunit",
        series: {
          "{{model}} {{engine_id}}": `sum by (model, engine_id) (triattn:kv_blocks{model=~"$model",engine_id=~"$engine",state="used"}) / sum by (model, engine_id) (triattn:kv_blocks${chosen})`,
        },
      },
      {
        title: "Evicted and reclaimed a second",
        series: {
          "tokens evicted": `sum(${rate("triattn:tokens_evicted_total")})`,
          "blocks reclaimed": `sum(${rate("triattn:blocks_reclaimed_total")})`,
        },
      },
    ],
  },
  {
    title: "Work",
    panels: [
      {
        title: "Tokens generated a second",
        series: { "{{model}} {{engine_id}}": rate("triattn:tokens_generated_total") },
      },
      {
        title: "Requests",
        series: {
          running: `sum(triattn:requests_running${chosen})`,
          waiting: `sum(triattn:requests_waiting${chosen})`,
          "finished a second": `sum(${rate("triattn:requests_finished_total")})`,
        },
      },
      {
        title: "Preemptions a second",
        series: { "{{model}} {{engine_id}}": rate("triattn:preemptions_total") },
      },
    ],
  },
  {
    title: "Rounds",
    panels: [
      {
        title: "Rounds a second",
        series: {
          rounds: `sum(${rate("triattn:compactions_total")})`,
          "steps with rounds": `sum(${rate("triattn:compaction_batches_total")})`,
        },
      },
      {
        title: "Share of time that requests wait for rounds",
        unit: "percentunit",
        description: "Planning and rounds together, of the wall clock.",
        series: { "{{model}} {{engine_id}}": rate("triattn:batch_stall_seconds_total") },
      },
      {
        title: "Time of a batch of rounds",
        unit: "s",
        series: {
          "{{phase}}": `sum by (phase) (${rate("triattn:round_seconds_total")}) / ignoring (phase) group_left sum(${rate("triattn:compaction_batches_total")})`,
        },
      },
      {
        title: "Rounds put off a second",
        series: { "{{reason}}": `sum by (reason) (${rate("triattn:compaction_skipped_total")})` },
      },
      {
        title: "Policy revision of each engine",
        series: { "{{model}} {{engine_id}}": `triattn:engine_policy_revision${chosen}` },
      },
      {
        title: "Budgets of rules",
        series: { "{{rule}}": "triattn:rule_budget_tokens", policy: "triattn:policy_budget_tokens" },
      },
    ],
  },
  {
    title: "Control plane",
    panels: [
      {
        title: "Frames dropped a second",
        series: { "{{reason}}": "rate(triattn:link_frames_dropped_total[$__rate_interval])" },
      },
      {
        title: "Events lost or dropped a second",
        series: {
          lost: `sum(${rate("triattn:events_lost_total")})`,
          "dropped by the engine": `sum(${rate("triattn:events_dropped_total")})`,
          "dropped for slow readers": "rate(triattn:consumer_items_dropped_total[$__rate_interval])",
        },
      },
      {
        title: "Processor",
        unit: "percentunit",
        series: { cores: 'rate(process_cpu_seconds_total{job="triattn"}[$__rate_interval])' },
      },
      {
        title: "Memory",
        unit: "bytes",
        series: { resident: 'process_resident_memory_bytes{job="triattn"}' },
      },
    ],
  },
];

function variable(name: string, label: string, query: string) {
  return {
    name,
    label,
    type: "query",
    datasource,
    query: { query, refId: name },
    refresh: 2,
    multi: true,
    includeAll: true,
    allValue: ".*",
    current: { text: "All", value: "$__all" },
  };
}

/** What Grafana imports. */
export function grafana(): Record<string, unknown> {
  const panels: Record<string, unknown>[] = [];
  let [id, y] = [0, 0];
  for (const row of rows) {
    panels.push({
      id: ++id,
      type: "row",
      title: row.title,
      collapsed: false,
      gridPos: { x: 0, y, w: 24, h: 1 },
      panels: [],
    });
    y += 1;
    let x = 0;
    for (const { title, type = "timeseries", unit = "short", width = 8, description, series } of row.panels) {
      const height = type === "stat" ? 4 : 8;
      if (x + width > 24) [x, y] = [0, y + height];
      panels.push({
        id: ++id,
        type,
        title,
        ...(description === undefined ? {} : { description }),
        datasource,
        gridPos: { x, y, w: width, h: height },
        fieldConfig: { defaults: { unit, min: 0 }, overrides: [] },
        options: type === "stat" ? { textMode: title === "Policy" ? "name" : "value" } : {},
        targets: Object.entries(series).map(([legendFormat, expr], index) => ({
          refId: String.fromCharCode(65 + index),
          datasource,
          expr,
          legendFormat,
        })),
      });
      x += width;
    }
    y += row.panels.some(({ type }) => type !== "stat") ? 8 : 4;
  }
  return {
    uid: "triattn",
    title: "triattn",
    tags: ["triattn", "vllm"],
    schemaVersion: 39,
    version: 1,
    editable: true,
    time: { from: "now-1h", to: "now" },
    refresh: "10s",
    templating: {
      list: [
        { name: "datasource", label: "Data source", type: "datasource", query: "prometheus", current: {} },
        variable("model", "Model", "label_values(triattn:engine_up, model)"),
        variable("engine", "Engine", 'label_values(triattn:engine_up{model=~"$model"}, engine_id)'),
      ],
    },
    panels,
  };
}

export const content = `${JSON.stringify(grafana(), null, 2)}\n`;

if (import.meta.main ?? process.argv[1] === import.meta.filename) writeFileSync(path, content);
