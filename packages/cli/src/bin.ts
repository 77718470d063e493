#!/usr/bin/env node
import { run } from "./program.ts";

// Whoever read the output has gone (`triattn … | head`); that is no reason to stop serving.
for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
  });
}
process.exitCode = await run(process.argv.slice(2));
