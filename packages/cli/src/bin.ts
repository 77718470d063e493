#!/usr/bin/env node
import { version } from "./version.ts";

// Whoever read the output has gone (`triattn … | head`); that is no reason to stop serving.
for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
  });
}
const args = process.argv.slice(2);
if (args.length === 1 && (args[0] === "--version" || args[0] === "-V")) {
  // Asked by scripts, again and again: nothing is loaded for it.
  process.stdout.write(`${version}\n`);
} else {
  const { run } = await import("./program.ts");
  process.exitCode = await run(args);
}
