import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { parse } from "yaml";
import { z } from "zod";
import { METRICS, type MetricInfo } from "../../packages/control/src/metrics/catalog.ts";
import * as grafana from "../docs/grafana.ts";
import * as table from "../docs/metrics.ts";
import { root } from "../setup/paths.ts";

const operations = join(root, "docs", "operations");
const read = (name: string) => readFileSync(join(operations, name), "utf8");
const hasPromtool = spawnSync("promtool", ["--version"]).status === 0;

/** Fails for a metric, or a label of one, that is not there. */
function checkExpression(expression: string): void {
  const used = [...expression.matchAll(/\b((?:triattn:|process_|vllm:)[a-z_]+)(?:\{([^}]*)\})?/g)];
  expect(used.length).toBeGreaterThan(0);
  for (const [, name = "", selector = ""] of used) {
    const info: MetricInfo | undefined = METRICS[name as keyof typeof METRICS];
    expect(info, `${name} in ${expression}`).toBeDefined();
    const labels = ["job", "instance", ...(info?.own ? [] : ["model", "engine_id"]), ...(info?.labels ?? [])];
    for (const [, label] of selector.matchAll(/(\w+)\s*[=!]~?/g)) expect(labels).toContain(label);
    // Totals are only good for their growth, anything else is not.
    const grows = new RegExp(`(rate|increase)\\(${name}\\b`).test(expression);
    expect([name, grows]).toEqual([name, info?.type === "counter"]);
  }
}

const Datasource = z.strictObject({ type: z.literal("prometheus"), uid: z.literal("$datasource") });
const Target = z.strictObject({
  refId: z.string().regex(/^[A-Z]$/),
  datasource: Datasource,
  expr: z.string().min(1),
  legendFormat: z.string().min(1),
});
const gridPos = z.strictObject({
  x: z.int().min(0),
  y: z.int().min(0),
  w: z.int().max(24),
  h: z.int().min(1),
});
const Row = z.strictObject({
  id: z.int(),
  type: z.literal("row"),
  title: z.string(),
  collapsed: z.literal(false),
  gridPos,
  panels: z.tuple([]),
});
const Panel = z.strictObject({
  id: z.int(),
  type: z.enum(["timeseries", "stat"]),
  title: z.string(),
  description: z.string().optional(),
  datasource: Datasource,
  gridPos,
  fieldConfig: z.looseObject({ overrides: z.tuple([]) }),
  options: z.looseObject({}),
  targets: z.array(Target).min(1),
});
const Dashboard = z.looseObject({
  uid: z.string().max(40),
  title: z.string(),
  schemaVersion: z.int().min(36),
  templating: z.looseObject({ list: z.array(z.looseObject({ name: z.string(), type: z.string() })) }),
  panels: z.array(z.union([Row, Panel])),
});

test("the Grafana dashboard is what Grafana imports, and asks for metrics that are there", () => {
  const text = read("grafana.json");
  expect(text, "run scripts/docs/grafana.ts").toBe(grafana.content);
  const dashboard = Dashboard.parse(JSON.parse(text));
  const { panels, templating } = dashboard;
  expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
  for (const [i, a] of panels.entries()) {
    expect(a.gridPos.x + a.gridPos.w).toBeLessThanOrEqual(24);
    for (const b of panels.slice(i + 1)) {
      const apart = (from: "x" | "y", size: "w" | "h") =>
        a.gridPos[from] + a.gridPos[size] <= b.gridPos[from] ||
        b.gridPos[from] + b.gridPos[size] <= a.gridPos[from];
      expect(apart("x", "w") || apart("y", "h"), `${a.title} over ${b.title}`).toBe(true);
    }
  }
  const variables = templating.list.map(({ name }) => name);
  for (const panel of panels) {
    for (const { expr } of panel.type === "row" ? [] : panel.targets) {
      checkExpression(expr);
      for (const [, name = ""] of expr.matchAll(/\$(\w+)/g))
        expect([...variables, "__rate_interval"]).toContain(name);
    }
  }
});

test("alerts are of metrics that are there", () => {
  const { groups } = parse(read("alerts.yml"));
  for (const { rules } of groups) for (const { expr } of rules) checkExpression(expr);
});

test("the scrape configurations name the control plane's default address, and rules that are there", () => {
  const prometheus = parse(read("prometheus.yml"));
  expect(prometheus.scrape_configs[0].static_configs[0].targets).toEqual(["127.0.0.1:9470"]);
  for (const file of prometheus.rule_files) read(file);
  const { receivers, processors, exporters, service } = parse(read("otel-collector.yaml"));
  expect(receivers.prometheus.config.scrape_configs[0].static_configs[0].targets).toEqual(["127.0.0.1:9470"]);
  const { metrics } = service.pipelines;
  for (const name of metrics.receivers) expect(receivers).toHaveProperty(name);
  for (const name of metrics.processors) expect(processors).toHaveProperty(name);
  for (const name of metrics.exporters) expect(exporters).toHaveProperty(name);
});

test("the table of metrics is that of the source", () => {
  const text = read("README.md");
  expect(text, "run scripts/docs/metrics.ts").toBe(table.withTable(text));
});

test.skipIf(!hasPromtool)("promtool takes them (skipped where promtool is not installed)", () => {
  const { status, stdout, stderr } = spawnSync(
    "promtool",
    ["check", "config", join(operations, "prometheus.yml")],
    {
      encoding: "utf8",
    },
  );
  expect(status, stdout + stderr).toBe(0);
});
