/**
 * Builds the npm package and measures how long its `triattn --version` takes, beside a bare start of Node: wall time,
 * which waits for whatever else the machine does, and processor time, which does not.
 */
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { buildPackage } from "./build.ts";

const RUNS = 30;
const bin = join(await buildPackage(), "dist", "bin.js");

function wall(args: readonly string[]): { fastest: number; median: number } {
  const times = Array.from({ length: RUNS + 3 }, () => {
    const start = performance.now();
    execFileSync(process.execPath, args, { stdio: "ignore" });
    return performance.now() - start;
  });
  const sorted = times.slice(3).sort((a, b) => a - b);
  return { fastest: sorted[0] ?? 0, median: sorted[RUNS / 2] ?? 0 };
}

/** Milliseconds of processor time of one run; the shell's `times` ends with user and system time of its children. */
function processor(args: readonly string[]): number {
  const script = `for i in $(seq ${RUNS}); do "$@" > /dev/null; done; times`;
  const said = execFileSync("bash", ["-c", script, "bash", process.execPath, ...args], { encoding: "utf8" });
  const children = said.trim().split("\n").at(-1) ?? "";
  const seconds = [...children.matchAll(/(\d+)m([\d.]+)s/g)].map(([, m, s]) => 60 * Number(m) + Number(s));
  return (1000 * seconds.reduce((sum, value) => sum + value, 0)) / RUNS;
}

for (const [name, args] of [
  ["node -e 0", ["-e", "0"]],
  ["triattn --version", [bin, "--version"]],
] as const) {
  const { fastest, median } = wall(args);
  process.stdout.write(
    `${name.padEnd(18)} wall ${fastest.toFixed(0)} ms (fastest), ${median.toFixed(0)} ms (median); processor ${processor(args).toFixed(0)} ms\n`,
  );
}
