/**
 * Hostile engines and documents against the control plane, and engines that come and go:
 *
 *     npx -y pnpm@12 fuzz [--frames N] [--documents N] [--reconnects N] [--seed N]
 *
 * Ends with an error for the first thing that should not be; the seed finds it again. Linux only.
 */
import { parseArgs } from "node:util";
import { tryDocuments } from "./fuzz/documents.ts";
import { tryFrames, tryReconnects } from "./fuzz/plane.ts";
import { Chance } from "./fuzz/random.ts";

const { values } = parseArgs({
  options: {
    frames: { type: "string", default: "1000000" },
    documents: { type: "string", default: "100000" },
    reconnects: { type: "string", default: "1000" },
    seed: { type: "string", default: String(Date.now() % 2 ** 31) },
  },
});
const seed = Number(values.seed);
const say = (what: string, result: object) =>
  process.stdout.write(
    `${what.padEnd(11)} ${JSON.stringify(result, (_, v) => (typeof v === "number" ? Math.round(v * 10) / 10 : v))}\n`,
  );

/** Memory that may grow while nothing is kept, in MB: the allocator's own. */
const NOISE = 60;

process.stdout.write(`seed        ${seed}\n`);
process.on("unhandledRejection", (error) => {
  throw error;
});
say("documents", tryDocuments(new Chance(seed), Number(values.documents)));
const frames = await tryFrames(new Chance(seed + 1), Number(values.frames));
say("frames", frames);
const reconnects = await tryReconnects(Number(values.reconnects));
say("reconnects", reconnects);
if (frames.growth > NOISE || reconnects.growth > NOISE) throw new Error("memory grows");
if (reconnects.files > 3) throw new Error(`${reconnects.files} files were left open`);
process.exit(0);
