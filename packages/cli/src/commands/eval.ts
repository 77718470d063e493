import { existsSync, mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ConfigError } from "@triattn/control";
import { presets } from "@triattn/protocol";
import { Command, Option } from "commander";
import { NotCompressed, onDisk } from "../errors.ts";
import { controls, type Keep, makeArms, type PinMode, readBudget, readRatio } from "../eval/arms.ts";
import { evalBackend } from "../eval/backends.ts";
import { chooseTasks, taskNames } from "../eval/choose.ts";
import { EngineGroup } from "../eval/engines.ts";
import { plots } from "../eval/plot.ts";
import { duration, Progress } from "../eval/progress.ts";
import { type EvalReport, type Result, summarize, table, unfired } from "../eval/report.ts";
import { RowFile } from "../eval/rows.ts";
import { run } from "../eval/run.ts";
import { list, modelPath } from "../eval/settings.ts";
import { BACKENDS, type BackendName, backendOf } from "../serve/backends.ts";
import { toJson } from "../serve/output.ts";
import { checkObserved } from "../serve/policy.ts";
import type { Served } from "../serve/serve.ts";
import { onSignals, signalCode } from "../serve/signals.ts";
import { generateCommand, tokenizerCommand } from "./eval-generate.ts";
import { withHelp } from "./help.ts";
import { wholeNumber } from "./serve.ts";

export interface EvalFlags {
  policy: string;
  keep?: string;
  budget?: string;
  tasks: string;
  limit: number;
  lengths: string;
  textLength: number;
  text?: string;
  data: string[];
  maxTokens: number;
  temperature: number;
  topP: number;
  samples: number;
  pin: "prompt" | "none" | "both";
  interval: number;
  window: number;
  concurrency?: number;
  engines?: number;
  seed: number;
  stats?: string;
  backend: BackendName;
  python?: string;
  out?: string;
  resume?: string;
  whole?: boolean;
  report?: string;
  verbose?: boolean;
  json?: boolean;
}

/** The preset made for this, where this version has it. */
const DEFAULT_POLICY = Object.hasOwn(presets, "auto") ? "auto" : "triattention";

export function evalCommand(): Command {
  const command = new Command("eval")
    // Options after a subcommand's name are its own.
    .enablePositionalOptions()
    .description(
      "Run policies × budgets × tasks through the real engine, the same prompts in every arm, with full KV, random " +
        "eviction and streaming as controls.",
    )
    .argument(
      "<model>",
      "a model directory, a name on the Hugging Face hub, or tiny: the model that comes along",
    )
    .argument("[engine flags...]", "after --: flags of the engine, passed through untouched")
    .option(
      "--policy <names>",
      `presets or JSON files, by commas; ${controls.join(", ")} always run`,
      DEFAULT_POLICY,
    )
    .option(
      "--keep <parts>",
      "what is kept of the generated tokens, the prompt besides: 1/4,1/8 (default: 1/8)",
    )
    .option("--budget <tokens>", "instead of --keep: resident tokens of a request, by commas")
    .option("--tasks <names>", `all, or some of ${taskNames.join(", ")}`, "all")
    .option("--limit <n>", "items of each task", wholeNumber("--limit", 1), 50)
    .option("--lengths <tokens>", "lengths of traces and of needle texts, by commas", "1500")
    .option(
      "--text-length <tokens>",
      "tokens of each text of fidelity",
      wholeNumber("--text-length", 64),
      1024,
    )
    .option("--text <file>", "text for fidelity and needles (default: one that comes along)")
    .option("--data <name=file...>", "data of tasks that read some, as math-500=FILE.jsonl", collect, [])
    .option(
      "--max-tokens <n>",
      "most tokens of an answer, for aime24, aime25, math-500, gpqa",
      wholeNumber("--max-tokens", 1),
      4096,
    )
    .option("--temperature <x>", "of tasks that read data; 0 is greedy", decimal("--temperature", 0, 2), 0)
    .option("--top-p <x>", "with a temperature", decimal("--top-p", 0.01, 1), 0.95)
    .option("--samples <n>", "answers to each question of data", wholeNumber("--samples", 1), 1)
    .addOption(
      new Option("--pin <what>", "whether prompts are pinned")
        .choices(["prompt", "none", "both"])
        .default("prompt"),
    )
    .option("--interval <tokens>", "a round every so many tokens", wholeNumber("--interval", 1), 64)
    .option("--window <tokens>", "largest recency window of any policy", wholeNumber("--window", 0), 32)
    .option(
      "--concurrency <n>",
      "requests at once (default: 64; on a CPU up to 256, as 4 GiB of KV hold)",
      wholeNumber("--concurrency", 1),
    )
    .option(
      "--engines <n>",
      "engines beside one another that share the requests (default: 1; on a CPU 2 for a small model and 32 requests or " +
        "more, vLLM)",
      wholeNumber("--engines", 1),
    )
    .option("--seed <n>", "items, random eviction and intervals", wholeNumber("--seed", 0), 0)
    .option(
      "--stats <file|name>",
      "statistics of the model's queries (default: those that belong to the model)",
    )
    .addOption(new Option("--backend <engine>", "the engine").choices(BACKENDS).default("vllm"))
    .option("--python <path>", "the Python that has the engine, or its environment's directory")
    .option("--out <file>", "keep finished rows in this new file (default: triattn-eval-TIME.jsonl)")
    .option("--resume <file>", "go on with a file of rows")
    .option(
      "--whole",
      "generate on after a wrong token of an exact trace: slower, and it tells answers and tokens a second",
    )
    .option("--report <directory>", "write report.json, report.txt and plots there")
    .option("--verbose", "show the engine's log")
    .option("--json", "end with one line of JSON instead of tables")
    .addCommand(generateCommand())
    .addCommand(tokenizerCommand())
    .action(async (model: string, engineFlags: string[], flags: EvalFlags) => {
      process.exitCode = await evaluate(model, engineFlags, flags);
    });
  return withHelp(command, {
    ok: "every arm ran, and every compressed one compressed",
    codes: [2, 3, 4, [5, "an arm that should have compressed did not"]],
    examples: [
      "triattn eval tiny --policy auto,triattention --keep 1/8 --tasks all --limit 50 --json",
      "triattn eval ./SmolLM2-135M-Instruct --policy keydiff --keep 1/4,1/8 --tasks fidelity,needles --limit 8",
      "triattn eval tiny --backend sglang --keep 1/8 --tasks recall,passcode",
      "triattn eval tiny --keep 1/8 --resume triattn-eval-2026-11-25T10-00-00.jsonl",
    ],
  });
}

function collect(value: string, before: string[]): string[] {
  return [...before, value];
}

/** A number between two others, for commander. */
function decimal(flag: string, least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !(value >= least && value <= most)) {
      throw new ConfigError(flag, text, `a number from ${least} to ${most}`);
    }
    return value;
  };
}

function keepsOf({ keep, budget }: EvalFlags): Keep[] {
  if (keep !== undefined && budget !== undefined) {
    throw new ConfigError("--budget", budget, "either --keep or --budget, not both");
  }
  const keeps = budget === undefined ? list(keep ?? "1/8", readRatio) : list(budget, readBudget);
  if (keeps.length === 0) throw new ConfigError("--keep", keep, "a part between 0 and 1, as 1/8");
  return keeps;
}

function rowPath({ out, resume }: EvalFlags): string {
  if (out !== undefined && resume !== undefined) {
    throw new ConfigError("--out", out, "either --out (a new file) or --resume (one to go on with)");
  }
  if (resume !== undefined && !existsSync(resume)) throw new ConfigError("--resume", resume, "is not there");
  return resume ?? out ?? `triattn-eval-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.jsonl`;
}

async function save(directory: string, report: EvalReport): Promise<void> {
  const files = {
    "report.json": `${toJson(report, 1)}\n`,
    "report.txt": `${table(report)}\n`,
    ...plots(report),
  };
  await onDisk(directory, () => {
    mkdirSync(directory, { recursive: true });
    for (const [name, text] of Object.entries(files)) {
      const path = join(directory, name);
      writeFileSync(`${path}.part`, text);
      renameSync(`${path}.part`, path);
    }
  });
}

/** Runs what is left to run; the exit code. */
async function evaluate(name: string, engineFlags: readonly string[], flags: EvalFlags): Promise<number> {
  const model = modelPath(name);
  const pins: PinMode[] = flags.pin === "both" ? ["prompt", "none"] : [flags.pin];
  const { interval, window, seed, whole = false } = flags;
  const keeps = keepsOf(flags);
  const arms = makeArms({
    model,
    policies: list(flags.policy, (text) => text),
    ...{ keeps, pins, interval, window, seed },
    statistics: flags.stats,
  });
  for (const { document } of arms) checkObserved({ policy: document, rules: [] }, backendOf(flags.backend));
  const tasks = await chooseTasks({ model, keeps, ...flags, whole });
  const settings = {
    model,
    backend: flags.backend,
    ...{ seed, interval, window, limit: flags.limit, whole },
    arms: Object.fromEntries(
      arms.map(({ label, keep, pin, document, statistics }) => [label, { keep, pin, document, statistics }]),
    ),
    tasks: Object.fromEntries(tasks.map(({ name, description }) => [name, description])),
    ...(flags.data.length > 0 ? { data: flags.data, maxTokens: flags.maxTokens } : {}),
    engineFlags,
  };
  const path = rowPath(flags);
  const rows = await RowFile.open(path, settings, flags.resume !== undefined);
  const say = (text: string) => process.stderr.write(`${text}\n`);
  const progress = new Progress({
    total: arms.length * tasks.length * flags.limit * (flags.data.length > 0 ? flags.samples : 1),
    resumed: rows.rows.length,
    terminal: process.stderr.isTTY === true,
    write: (text) => process.stderr.write(text),
  });
  say(
    `${arms.length} arms × ${tasks.length} tasks, up to ${flags.limit} items each; finished rows go to ${path}`,
  );
  const sampled = flags.temperature > 0 ? evalBackend(flags.backend).samplingNote(engineFlags) : null;
  if (sampled !== null) say(sampled);
  const running = new Set<Served>();
  let stoppedBy: NodeJS.Signals | undefined;
  const unlisten = onSignals(
    (signal) => {
      stoppedBy = signal;
      if (running.size === 0) process.exit(signalCode(signal));
      for (const served of running) void served.stop();
    },
    () => {
      for (const served of running) void served.kill();
    },
  );
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  try {
    await run({
      ...{ tasks, arms, rows, progress },
      start: async (profile, first) => {
        const alone = profile === "score";
        const own = tasks.filter((task) => task.profile === profile);
        const longest = own.some((task) => task.longest === null)
          ? null
          : Math.max(...own.map((task) => task.longest ?? 0));
        progress.note(`starting the engine${alone ? ", one request at a time" : ""} …`);
        const started = await EngineGroup.start(
          {
            ...{ model, profile, longest, interval, backend: flags.backend },
            python: flags.python,
            budget: Math.max(...arms.map(({ document }) => document.budget)),
            policies: arms.map(({ document }) => document),
            engines: flags.engines,
            concurrency: flags.concurrency,
            requests: own.length * flags.limit * (flags.data.length > 0 ? flags.samples : 1),
            flags: engineFlags,
            onLine: (line) => flags.verbose && say(line),
            onStart: (served) => {
              running.add(served);
              void served.exited.then(() => running.delete(served));
            },
          },
          first,
        );
        const { count = 1 } = started.description;
        progress.note(
          `${count > 1 ? `${count} engines serve` : "the engine serves"} after ${duration(seconds())}`,
        );
        progress.begin();
        return started;
      },
    });
    progress.end();
    const results = Object.fromEntries(
      tasks.map((task) => [
        task.name,
        Object.fromEntries(
          arms.flatMap((arm): [string, Result][] => {
            const result = summarize(task, arm, arms, rows.rows, rows.batches, seed);
            return result === undefined ? [] : [[arm.label, result]];
          }),
        ),
      ]),
    );
    const report: EvalReport = {
      command: ["triattn", ...process.argv.slice(2)].join(" "),
      model: name,
      engine: rows.batches.findLast(({ batch }) => batch.engine !== undefined)?.batch.engine ?? null,
      ...{ seed, interval, window, whole },
      seconds: Number(rows.batches.reduce((sum, { batch }) => sum + batch.seconds, 0).toFixed(1)),
      descriptions: Object.fromEntries(tasks.map((task) => [task.name, task.description])),
      measures: Object.fromEntries(tasks.map((task) => [task.name, task.measures])),
      tasks: results,
      published: Object.fromEntries(tasks.map((task) => [task.name, task.published ?? []])),
    };
    if (flags.report !== undefined) await save(flags.report, report);
    const idle = unfired(report);
    if (idle.length > 0) {
      const remedy = whole ? "" : ", or --whole where each trace is wrong before that";
      throw new NotCompressed(`no round fired: ${idle.join("; ")}; use longer tasks, or keep less${remedy}`);
    }
    process.stdout.write(`${flags.json ? toJson(report) : table(report)}\n`);
    return 0;
  } catch (error) {
    progress.end();
    if (rows.rows.length > 0 && !(error instanceof ConfigError)) {
      say(`${rows.rows.length} finished rows are kept: the same command with --resume ${path} goes on`);
    }
    if (stoppedBy !== undefined) return signalCode(stoppedBy);
    throw error;
  } finally {
    unlisten();
    rows.close();
  }
}
