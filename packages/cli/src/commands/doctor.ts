import { Command, Option } from "commander";
import { examineMachine, findingsText } from "../doctor/run.ts";
import { ExitCode } from "../exit-codes.ts";
import { BACKENDS, type BackendName } from "../serve/backends.ts";
import { withHelp } from "./help.ts";
import { readToken } from "./top.ts";

interface Flags {
  backend: BackendName;
  python?: string;
  model?: string;
  policy?: string;
  url?: string;
  tokenFile?: string;
  quick?: boolean;
  json?: boolean;
}

/** `triattn doctor`: what would keep an engine from serving, each with the way out. */
export function doctorCommand(): Command {
  const command = new Command("doctor")
    .description(
      "Look at everything that serving needs, and say of each what is wrong and what to do. Changes nothing.",
    )
    .argument("[engine flags...]", "after --: flags that the engine would get")
    .addOption(new Option("--backend <engine>", "the engine").choices(BACKENDS).default("vllm"))
    .option("--python <path>", "the Python that has the engine, or its environment's directory")
    .option(
      "--model <model>",
      "the model that would be served: its statistics, and whether the engine takes it",
    )
    .option("--policy <name|file>", "the policy that would be used (default: as serve takes it)")
    .option("--url <url>", "address of a control plane's HTTP API that runs: look at its engines, too")
    .option("--token-file <file>", "file with its token (default: the variable TRIATTN_HTTP_TOKEN)")
    .option("--quick", "do not import the engine, which takes seconds to a minute")
    .option("--json", "print one line of JSON")
    .action(async (engineFlags: string[], flags: Flags) => {
      const findings = await examineMachine({
        ...flags,
        engineFlags,
        token: flags.url === undefined ? undefined : readToken(flags.tokenFile),
        quick: flags.quick ?? false,
        environment: process.env,
        say: (line) => void process.stderr.write(`triattn: ${line}\n`),
      });
      const errors = findings.filter(({ level }) => level === "error").length;
      const warnings = findings.filter(({ level }) => level === "warn").length;
      const text = flags.json ? JSON.stringify({ findings, errors, warnings }) : findingsText(findings);
      process.stdout.write(`${text}\n`);
      if (errors > 0) process.exitCode = ExitCode.environment;
    });
  return withHelp(command, {
    ok: "nothing is wrong, or only warnings",
    codes: [2, [3, "at least one finding is an error"]],
    examples: [
      "triattn doctor",
      "triattn doctor --model Qwen/Qwen3-8B -- --max-model-len 32768",
      "triattn doctor --url http://127.0.0.1:9470 --quick --json",
    ],
  });
}
