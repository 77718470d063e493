/**
 * Fits the roofline of `triattn plan` to the committed measurements and prints it, with the error of each point as
 * predicted from all others. The constants stand in packages/cli/src/plan/roofline.ts.
 */
import { join } from "node:path";
import { fitRoofline, leaveOneOut } from "../packages/cli/src/plan/fit.ts";
import { measuredPoints, predictMs } from "../packages/cli/src/plan/measured.ts";
import { root } from "./setup/paths.ts";

const files = ["vllm-h200.json", "vllm-h200-steps.json"].map((name) =>
  join(root, "docs", "benchmarks", name),
);
const points = files.flatMap((file) => measuredPoints(file).points);
const constants = fitRoofline(points);
const percent = (value: number) => `${(100 * value).toFixed(1)} %`.padStart(8);
const others = leaveOneOut(points);
process.stdout.write(`${JSON.stringify(constants)}\n`);
for (const [i, point] of points.entries()) {
  const own = predictMs(point, constants) / point.measuredMs - 1;
  process.stdout.write(
    `${point.name.padEnd(20)} ${point.measuredMs.toFixed(2).padStart(6)} ms ${percent(own)}  without it ${percent(others[i] ?? 0)}\n`,
  );
}
const mean = others.reduce((sum, error) => sum + Math.abs(error), 0) / others.length;
process.stdout.write(
  `each predicted from the others: mean ${percent(mean)}, worst ${percent(Math.max(...others.map(Math.abs)))}\n`,
);
