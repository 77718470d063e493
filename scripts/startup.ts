/** Builds the npm package and measures how long its `triattn --version` takes, beside a bare start of Node. */
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { buildPackage } from "./build.ts";

const RUNS = 30;
const bin = join(await buildPackage(), "dist", "bin.js");

function median(args: readonly string[]): number {
  const times = Array.from({ length: RUNS + 3 }, () => {
    const start = performance.now();
    execFileSync(process.execPath, args, { stdio: "ignore" });
    return performance.now() - start;
  });
  return times.slice(3).sort((a, b) => a - b)[Math.floor(RUNS / 2)] ?? 0;
}

const bare = median(["-e", "0"]);
const version = median([bin, "--version"]);
process.stdout.write(
  `triattn --version: ${version.toFixed(0)} ms, of which Node's own start is ${bare.toFixed(0)} ms (medians of ${RUNS}, Node ${process.versions.node})\n`,
);
