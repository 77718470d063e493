/** The table of metrics in docs/operations/README.md: `node --import tsx scripts/docs/metrics.ts` writes it. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { METRICS, type MetricInfo } from "../../packages/control/src/metrics/catalog.ts";
import { root } from "../setup/paths.ts";

export const path = join(root, "docs", "operations", "README.md");
const [begin, end] = ["<!-- metrics -->", "<!-- end of metrics -->"];

function table(): string {
  const rows = Object.entries<MetricInfo>(METRICS).map(([name, { type, help, labels = [], own }]) => {
    const all = [...(own ? [] : ["engine_id", "model"]), ...labels].map((label) => `\`${label}\``).join(", ");
    return `| \`${name}\` | ${type} | ${all} | ${help} |`;
  });
  return ["| name | type | labels | |", "|---|---|---|---|", ...rows].join("\n");
}

/** The page with its table as the source has it. */
export function withTable(text: string): string {
  const [before, rest = ""] = text.split(begin);
  const after = rest.split(end)[1] ?? "";
  return `${before}${begin}\n\n${table()}\n\n${end}${after}`;
}

if (import.meta.main ?? process.argv[1] === import.meta.filename) {
  writeFileSync(path, withTable(readFileSync(path, "utf8")));
}
