/** Makes what the demo and the tests need: `node --import tsx scripts/setup.ts [ENVIRONMENT…]`. */
import { setupEnvironment, setupModel } from "./setup/index.ts";
import { type EnvironmentName, environments } from "./setup/paths.ts";
import { SetupError, say } from "./setup/steps.ts";

const named = process.argv.slice(2);
const unknown = named.find((name) => !environments.includes(name as EnvironmentName));
if (unknown !== undefined) {
  say(`unknown environment ${unknown}: one of ${environments.join(", ")}`);
  process.exit(2);
}
try {
  for (const name of named.length > 0 ? (named as EnvironmentName[]) : environments) {
    say(await setupEnvironment(name));
  }
  say(await setupModel());
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  say(`${error.message}\n→ ${error.remedy}`);
  process.exit(3);
}
