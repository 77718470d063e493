import { Command, CommanderError } from "commander";
import { withHelp } from "./commands/help.ts";
import { commands } from "./commands/index.ts";
import { ExitCode } from "./exit-codes.ts";
import { version } from "./version.ts";

/**
 * The command line, without anything run. Only the files of the commands that `wanted` names are loaded; of the
 * others it knows name and summary, which is all that help needs. Without `wanted`: all of them.
 */
export async function createProgram(wanted?: readonly string[]): Promise<Command> {
  const program = new Command("triattn")
    .description("KV cache budgets for long generations: the engine you run, under a control plane.")
    .version(version, "-V, --version", "print the version")
    .showHelpAfterError("(triattn --help says more)")
    // Options after a command's name are its own, those of its subcommands theirs.
    .enablePositionalOptions();
  withHelp(program, {
    codes: [2, 3, 4, 5],
    examples: ["triattn serve Qwen/Qwen3-8B --budget 2048 -- --max-model-len 32768", "triattn serve --help"],
  });
  for (const { name, summary, load } of commands) {
    const loaded = wanted === undefined || wanted.includes(name);
    program.addCommand((loaded ? await load() : new Command(name)).summary(summary));
  }
  for (const command of [program, ...program.commands.flatMap(withSubcommands)]) command.exitOverride();
  return program;
}

function withSubcommands(command: Command): Command[] {
  return [command, ...command.commands.flatMap(withSubcommands)];
}

/** The words of a command line that may name commands: `serve MODEL`, `help serve`. */
function named(args: readonly string[]): string[] {
  const words = args.filter((arg) => !arg.startsWith("-"));
  return words.slice(0, words[0] === "help" ? 2 : 1);
}

/** Runs a command line; the exit code. Never throws. */
export async function run(args: readonly string[]): Promise<number> {
  process.exitCode = ExitCode.ok;
  try {
    const program = await createProgram(named(args));
    await program.parseAsync(args, { from: "user" });
    return Number(process.exitCode);
  } catch (error) {
    // commander has said what is wrong; help and version are no errors.
    if (error instanceof CommanderError) return error.exitCode === 0 ? ExitCode.ok : ExitCode.usage;
    const own = args.slice(0, args.indexOf("--") < 0 ? undefined : args.indexOf("--"));
    const { report } = await import("./report.ts");
    return report(error, own.includes("--json"));
  }
}
