/** The page over a simulated engine: `pnpm --filter @triattn/dashboard fake [REQUESTS]`. */
import { buildPage, isBuilt } from "../../build.ts";
import { startFake } from "./server.ts";

if (!isBuilt()) await buildPage();
const { url } = await startFake({ requests: Number(process.argv[2] ?? 340), port: 9471 });
process.stdout.write(`${url}\n`);
