import { Command } from "commander";
import { kernelsPlot, kernelsTable, measureKernels } from "../bench/kernels.ts";
import { save } from "../bench/save.ts";
import { findEngine } from "../serve/python.ts";
import { withHelp } from "./help.ts";
import { wholeNumber } from "./serve.ts";

interface Flags {
  budget: string[];
  requests: string[];
  interval: number;
  policies: string[];
  python?: string;
  out?: string;
  json?: boolean;
}

/** `triattn bench kernels`: what one round costs on this GPU. */
export function kernelsBench(): Command {
  const command = new Command("kernels")
    .description("GPU time of one round, beside a random round and a plain copy of the same bytes.")
    .option("--policies <name...>", "policies; random is always measured", [
      "random",
      "triattention",
      "keydiff",
      "blend",
      "streaming",
    ])
    .option("--budget <tokens...>", "budgets", ["2048"])
    .option("--requests <n...>", "requests that have a round at once", ["1", "16", "64"])
    .option("--interval <tokens>", "interval of the policy", wholeNumber("--interval", 1), 128)
    .option("--python <path>", "the Python that has torch and Triton (default: the engine's)")
    .option("--out <file>", "write the report here as JSON, and a plot beside it")
    .option("--json", "print the report as one line of JSON")
    .action(async (flags: Flags) => {
      const whole = (name: string, texts: readonly string[]) => texts.map(wholeNumber(name, 1));
      const options = {
        budgets: whole("--budget", flags.budget),
        requests: whole("--requests", flags.requests),
        interval: flags.interval,
        policies: flags.policies,
      };
      const { python } = await findEngine(flags.python);
      const stop = new AbortController();
      const onSignal = () => stop.abort();
      process.once("SIGINT", onSignal).once("SIGTERM", onSignal);
      try {
        const line = ["triattn", ...process.argv.slice(2)].join(" ");
        const note = (text: string) => void process.stderr.write(`${text}\n`);
        const report = await measureKernels(python, options, line, note, stop.signal);
        if (flags.out !== undefined) await save(flags.out, report, kernelsPlot(report));
        process.stdout.write(`${flags.json ? JSON.stringify(report) : kernelsTable(report)}\n`);
      } finally {
        process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
      }
    });
  return withHelp(command, {
    codes: [2, [3, "there is no GPU, or no Python with torch"], [4, "the measuring process died"]],
    examples: ["triattn bench kernels --budget 1024 2048 --requests 1 16 64 --out kernels.json"],
  });
}
