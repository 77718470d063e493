import { FieldError } from "@triattn/control";
import { Command, CommanderError } from "commander";
import { benchCommand } from "./commands/bench.ts";
import { calibrateCommand } from "./commands/calibrate.ts";
import { demoCommand } from "./commands/demo.ts";
import { serveCommand } from "./commands/serve.ts";
import { statsCommand } from "./commands/stats.ts";
import { ExitCode, exitCodeOf } from "./errors.ts";
import { version } from "./package.ts";
import { jsonOutput, textOutput } from "./serve/output.ts";

/** The command line, without anything run. */
export function createProgram(): Command {
  const program = new Command("triattn")
    .description("KV cache budgets for long generations: vLLM under a control plane.")
    .version(version)
    .showHelpAfterError("(triattn --help says more)");
  const commands = [serveCommand(), demoCommand(), statsCommand(), calibrateCommand(), benchCommand()];
  for (const command of commands) program.addCommand(command);
  const all = (command: Command): Command[] => [command, ...command.commands.flatMap(all)];
  for (const command of all(program)) command.exitOverride();
  return program;
}

/** Runs a command line; the exit code. Never throws. */
export async function run(args: readonly string[]): Promise<number> {
  process.exitCode = ExitCode.ok;
  try {
    await createProgram().parseAsync(args, { from: "user" });
    return Number(process.exitCode);
  } catch (error) {
    // commander has said what is wrong; help and version are no errors.
    if (error instanceof CommanderError) return error.exitCode === 0 ? ExitCode.ok : ExitCode.usage;
    const json = args.slice(0, args.indexOf("--") < 0 ? undefined : args.indexOf("--")).includes("--json");
    if (json) jsonOutput.error(error);
    if (!json || !(error instanceof FieldError)) textOutput.error(error);
    return exitCodeOf(error);
  }
}
