import { ConfigError, type PressureOptions } from "@triattn/control";
import { Command, Option } from "commander";
import type { Logger } from "pino";
import { ExitCode } from "../errors.ts";
import { BACKENDS, type BackendName } from "../serve/backends.ts";
import { createLogger, LOG_LEVELS, type LogLevel } from "../serve/logger.ts";
import { describe, explain, jsonOutput, type Output, textOutput, toJson } from "../serve/output.ts";
import { prepare, type ServePlan } from "../serve/prepare.ts";
import { start } from "../serve/serve.ts";
import { onSignals, signalCode } from "../serve/signals.ts";
import { withHelp } from "./help.ts";

interface Flags {
  budget?: number;
  interval?: number;
  policy?: string;
  stats?: string;
  backend?: BackendName;
  python?: string;
  pressure?: PressureOptions;
  dashboard?: boolean | string;
  dashboardToken?: string;
  listen?: string;
  keys?: string;
  logLevel?: LogLevel;
  logJson?: boolean;
  dryRun?: boolean;
  json?: boolean;
}

/** A whole number ≥ `least`, for commander. */
export function wholeNumber(flag: string, least: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < least) {
      throw new ConfigError(flag, text, `a whole number of at least ${least}`);
    }
    return value;
  };
}

/** `MIN:MAX` in tokens. */
function bounds(text: string): PressureOptions {
  const [, min, max] = /^(\d+):(\d+)$/.exec(text) ?? [];
  if (min === undefined || max === undefined || Number(min) < 1 || Number(min) > Number(max)) {
    throw new ConfigError("--pressure", text, "MIN:MAX, in tokens, such as 1024:8192");
  }
  return { min: Number(min), max: Number(max) };
}

export function serveCommand(): Command {
  const command = new Command("serve")
    .description("Serve a model with vLLM or SGLang, each request's KV cache kept inside a budget.")
    .argument("<model>", "a model directory, or a name on the Hugging Face hub")
    .argument(
      "[engine flags...]",
      "after --: flags of the engine, passed through untouched (--port 0: a free port)",
    )
    .option(
      "--budget <tokens>",
      "resident tokens of a request after a round; 0 never compresses",
      wholeNumber("--budget", 0),
    )
    .option(
      "--interval <tokens>",
      "a round fires at budget + interval resident tokens",
      wholeNumber("--interval", 1),
    )
    .option(
      "--policy <name|file>",
      "a preset or a JSON file (default: auto, or the TRIATTN_RUNTIME_* variables)",
    )
    .option(
      "--stats <file|name>",
      "statistics of the model's queries (default: those that belong to the model)",
    )
    .addOption(new Option("--backend <engine>", "the engine").choices(BACKENDS).default("vllm"))
    .option("--python <path>", "the Python that has the engine, or its environment's directory")
    .option(
      "--pressure <min:max>",
      "let the budget move between these, in tokens, with the pressure on the cache",
      bounds,
    )
    .option(
      "--dashboard [host:port]",
      "serve the dashboard, the HTTP API and metrics (default: 127.0.0.1:9470; port 0: a free one)",
    )
    .option(
      "--dashboard-token <file>",
      "the token that they ask for (or TRIATTN_HTTP_TOKEN); needed where other machines reach them",
    )
    .option(
      "--listen <address>",
      "where engines reach the control plane: tcp://host:port with keys, or ipc:///path (default: a socket of its own)",
    )
    .option("--keys <directory>", "keys of `triattn keys`, for tcp (default: where that puts them)")
    .addOption(
      new Option("--log-level <level>", "what the control plane logs").choices(LOG_LEVELS).default("warn"),
    )
    .option("--log-json", "log as JSON, one object a line, on stderr")
    .option("--dry-run", "check everything, print what would run, start nothing")
    .option("--json", "print events as JSON, one a line, on stdout; the engine's log goes to stderr")
    .action(async (model: string, engineFlags: string[], flags: Flags) => {
      const output = flags.json ? jsonOutput : textOutput;
      const plan = await prepare({
        model,
        policy: flags.policy,
        budget: flags.budget,
        interval: flags.interval,
        statistics: flags.stats,
        backend: flags.backend,
        python: flags.python,
        engineFlags,
        pressure: flags.pressure,
        dashboard: flags.dashboard,
        dashboardToken: flags.dashboardToken,
        listen: flags.listen,
        keys: flags.keys,
      });
      if (flags.dryRun) {
        process.stdout.write(`${flags.json ? toJson(describe(plan)) : explain(plan)}\n`);
        return;
      }
      const logger = createLogger({ level: flags.logLevel, json: flags.logJson });
      process.exitCode = await run(plan, output, logger);
    });
  return withHelp(command, {
    ok: "ended by itself without error",
    codes: [[2, "a flag, policy, budget or statistics file cannot be used"], 3, 4],
    examples: [
      "triattn serve Qwen/Qwen3-8B --budget 2048 -- --port 8001 --max-model-len 32768",
      "triattn serve Qwen/Qwen3-8B --backend sglang --budget 2048 -- --context-length 32768",
    ],
  });
}

/** Serves until a signal or the engine's end; the exit code. Throws when it does not come up, or dies. */
async function run(plan: ServePlan, output: Output, logger: Logger): Promise<number> {
  output.starting(plan);
  const served = await start(plan, { onLine: output.line, logger });
  let stoppedBy: NodeJS.Signals | undefined;
  const unlisten = onSignals(
    (signal) => {
      stoppedBy = signal;
      output.stopping(signal);
      void served.stop();
    },
    () => void served.kill(),
  );
  try {
    await served.ready.then(
      () => output.ready(served),
      async (error) => {
        await served.exited;
        if (stoppedBy === undefined) throw error;
      },
    );
    const exit = await served.exited;
    output.stopped(exit);
    if (stoppedBy !== undefined) return signalCode(stoppedBy);
    if (exit.code !== 0) throw served.died(exit);
    return ExitCode.ok;
  } finally {
    unlisten();
  }
}
