import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ConfigError } from "@triattn/control";
import { Command, Option } from "commander";
import { plot } from "../bench/plot.ts";
import { merge, table } from "../bench/report.ts";
import { moduleEnvironment, runModule } from "../bench/run.ts";
import { save } from "../bench/save.ts";
import { Measurement, type Report } from "../bench/schema.ts";
import { onDisk } from "../errors.ts";
import { BACKENDS, type BackendName, backendOf } from "../serve/backends.ts";
import { findEngine } from "../serve/python.ts";
import { kernelsBench } from "./bench-kernels.ts";
import { loadBench } from "./bench-load.ts";
import { withHelp } from "./help.ts";
import { wholeNumber } from "./serve.ts";

const PLAIN: ReadonlySet<string> = new Set(["bound", "full"]);

interface EngineFlags {
  model: string;
  arms: string[];
  budget: string[];
  generation: string[];
  requests: number;
  interval: number;
  rounds: number;
  turns: number;
  engine?: string;
  stats?: string;
  backend: BackendName;
  python?: string;
  out?: string;
  json?: boolean;
}

/** What measures an engine. */
const MODULES: Readonly<Record<BackendName, string>> = {
  vllm: "triattn.bench.engine",
  sglang: "triattn.bench.sglang_engine",
};

function whole(flag: string, texts: readonly string[]): number[] {
  return texts.map(wholeNumber(flag, 1));
}

function extraEngineArguments(text: string | undefined): Record<string, unknown> {
  if (text === undefined) return {};
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value))
      return value as Record<string, unknown>;
  } catch {
    // Said below.
  }
  throw new ConfigError(
    "--engine",
    text,
    'a JSON object of engine arguments, such as {"max_model_len": 8192}',
  );
}

async function finish(report: Report, flags: { out?: string; json?: boolean }): Promise<void> {
  if (flags.out !== undefined) await save(flags.out, report, plot(report));
  process.stdout.write(`${flags.json ? JSON.stringify(report) : table(report)}\n`);
}

function engineBench(): Command {
  const command = new Command("engine")
    .description("Decode throughput of a real engine, arms side by side, with random weights.")
    .option("--model <shape>", "qwen3-8b, qwen3-14b or tiny", "qwen3-8b")
    .option(
      "--arms <name...>",
      "full: nothing compressed, cache full; bound: the engine as it is on sequences that really are as long as " +
        "compressed ones; idle: the plugin loaded, nothing compressed; or any policy",
      ["bound", "full", "idle", "random", "triattention"],
    )
    .option("--budget <tokens...>", "budgets", ["2048"])
    .option("--generation <tokens...>", "lengths that requests of the full arm grow to", ["16384", "32768"])
    .option("--requests <n>", "running requests", wholeNumber("--requests", 1), 340)
    .option("--interval <tokens>", "interval of the policy", wholeNumber("--interval", 1), 128)
    .option("--rounds <n>", "rounds of every request before measuring", wholeNumber("--rounds", 1), 10)
    .option(
      "--turns <n>",
      "windows measured of each policy, in alternating order",
      wholeNumber("--turns", 1),
      3,
    )
    .option("--engine <json>", "engine arguments, as JSON")
    .option("--stats <file>", "statistics of the shape (default: random ones, which cost the same)")
    .addOption(new Option("--backend <engine>", "the engine").choices(BACKENDS).default("vllm"))
    .option("--python <path>", "the Python that has the engine")
    .option("--out <file>", "write the report here as JSON, and a plot beside it")
    .option("--json", "print the report as one line of JSON")
    .action(async (flags: EngineFlags) => {
      const { python } = await findEngine(flags.python, process.env, backendOf(flags.backend));
      const environment = await moduleEnvironment(process.env);
      const scratch = await onDisk(tmpdir(), () => mkdtempSync(join(tmpdir(), "triattn-bench-")));
      const options = {
        model: flags.model,
        scratch,
        requests: flags.requests,
        interval: flags.interval,
        rounds: flags.rounds,
        turns: flags.turns,
        budgets: whole("--budget", flags.budget),
        generations: whole("--generation", flags.generation),
        engine: extraEngineArguments(flags.engine),
        statistics: flags.stats ?? null,
      };
      const parts = [flags.arms.filter((arm) => PLAIN.has(arm)), flags.arms.filter((arm) => !PLAIN.has(arm))];
      const measurements: Measurement[] = [];
      const stop = new AbortController();
      const onSignal = () => stop.abort();
      process.once("SIGINT", onSignal).once("SIGTERM", onSignal);
      try {
        for (const arms of parts.filter((part) => part.length > 0)) {
          const result = await runModule(
            python,
            MODULES[flags.backend],
            [JSON.stringify({ ...options, arms })],
            environment,
            (line) => process.stderr.write(`${line}\n`),
            stop.signal,
          );
          measurements.push(Measurement.parse(result));
        }
      } finally {
        process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
        rmSync(scratch, { recursive: true, force: true });
      }
      await finish(merge(["triattn", ...process.argv.slice(2)].join(" "), measurements), flags);
    });
  return withHelp(command, {
    codes: [2, 3, 4, [5, "an arm that should have compressed did not; nothing is reported"]],
    examples: ["triattn bench engine --model qwen3-8b --budget 2048 1024 --out bench.json"],
  });
}

function mergeBench(): Command {
  const command = new Command("merge")
    .description(
      "Put results of `python -m triattn.bench.engine`, measured where there is no Node, into one report.",
    )
    .argument("<files...>", "results, one JSON object a file")
    .option("--command <text>", "the commands that made them", "python -m triattn.bench.engine")
    .option("--kernels <file>", "result of `python -m triattn.bench.rounds`")
    .option("--out <file>", "write the report here as JSON, and a plot beside it")
    .option("--json", "print the report as one line of JSON")
    .action(
      async (files: string[], flags: { command: string; kernels?: string; out?: string; json?: boolean }) => {
        const read = (file: string): unknown => {
          try {
            return JSON.parse(readFileSync(file, "utf8"));
          } catch (error) {
            throw new ConfigError("file", file, `a JSON file that can be read (${(error as Error).message})`);
          }
        };
        const measurements = files.map((file) => {
          const parsed = Measurement.safeParse(read(file));
          if (!parsed.success)
            throw new ConfigError("file", file, parsed.error.issues[0]?.message ?? "not a result");
          return parsed.data;
        });
        const kernels = flags.kernels === undefined ? [] : ([] as unknown[]).concat(read(flags.kernels));
        await finish(merge(flags.command, measurements, kernels), flags);
      },
    );
  return withHelp(command, {
    codes: [2, [5, "an arm that should have compressed did not; nothing is reported"]],
    examples: ["triattn bench merge bound.json compressed.json --out bench.json"],
  });
}

/** `triattn bench`: measure an engine with and without triattn. */
export function benchCommand(): Command {
  const command = new Command("bench")
    .description("Measure throughput with and without triattn, side by side.")
    .addCommand(engineBench())
    .addCommand(mergeBench())
    .addCommand(kernelsBench())
    .addCommand(loadBench());
  return withHelp(command, {
    codes: [2, 3, 4, 5],
    examples: [
      "triattn bench engine --model qwen3-8b --budget 2048 --out bench.json",
      "triattn bench load http://127.0.0.1:8000 --requests 64 --concurrency 16",
    ],
  });
}
