import { mkdirSync } from "node:fs";
import { delimiter, dirname, join, resolve } from "node:path";
import { ConfigError, userStatisticsDirectory } from "@triattn/control";
import { Command } from "commander";
import { z } from "zod";
import { counts, progressReporter, Rate } from "../calibrate/progress.ts";
import { CalibrationFailed, runCalibration } from "../calibrate/run.ts";
import { onDisk } from "../errors.ts";
import { pluginDirectory } from "../package.ts";
import { findEngine } from "../serve/python.ts";
import { withHelp } from "./help.ts";
import { statisticsFileName } from "./stats.ts";

const whole = z
  .string()
  .regex(/^[0-9]{1,9}$/, "must be a whole number")
  .transform(Number)
  .pipe(z.int().min(2));

const orNone = z
  .string()
  .regex(/^[0-9]{1,9}$/, "must be a whole number, 0 to learn nothing")
  .transform(Number);

/** As in kernels/triattn/statistics.py. */
const LEARNABLE_TOO = [
  "superseded",
  "recency",
  "trig",
  "norm",
  "keydiff",
  "knorm",
  "vnorm",
  "expected",
  "leverage",
] as const;

const Options = z.strictObject({
  out: z.string().min(1).optional(),
  text: z.array(z.string()).optional(),
  tokens: whole.optional(),
  window: whole.optional(),
  learn: orNone.optional(),
  learnMore: z.array(z.enum(LEARNABLE_TOO)).optional(),
  probeUnits: z.enum(["16", "32", "64"]).optional(),
  device: z.string().min(1).optional(),
  dtype: z.enum(["auto", "float32", "bfloat16", "float16"]).optional(),
  name: z.string().min(1).optional(),
  license: z.string().optional(),
  python: z.string().min(1).optional(),
  json: z.boolean().default(false),
});

/** The flag of an option by its name here. */
const flagOf = (name: string) => `--${name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;

function parse(given: unknown): z.infer<typeof Options> {
  const parsed = Options.safeParse(given);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const field = String(issue?.path[0] ?? "options");
  throw new ConfigError(
    flagOf(field),
    (given as Record<string, unknown>)[field],
    issue?.message ?? "cannot be used",
  );
}

async function calibrate(model: string, given: unknown): Promise<void> {
  const options = parse(given);
  const { json, python: named, text = [], out: wanted, learnMore = [], ...rest } = options;
  const out = resolve(wanted ?? join(userStatisticsDirectory(), statisticsFileName(options.name ?? model)));
  if (wanted === undefined) await onDisk(out, () => mkdirSync(dirname(out), { recursive: true }));
  const { python } = await findEngine(named);
  const path = [await pluginDirectory(), process.env.PYTHONPATH].filter(Boolean).join(delimiter);
  const flags = Object.entries(rest).flatMap(([name, value]) => [flagOf(name), String(value)]);
  const files = text.length > 0 ? ["--text", ...text] : [];
  const more = learnMore.length > 0 ? ["--learn-more", ...learnMore] : [];

  const rate = new Rate();
  const line = (value: unknown) => process.stdout.write(`${JSON.stringify(value)}\n`);
  const report = json
    ? (progress: Parameters<Rate["update"]>[0]) =>
        line({
          ...progress,
          ...(counts(progress.phase) ? rate.update(progress) : null),
        })
    : progressReporter(process.stderr);

  const controller = new AbortController();
  let stopped: NodeJS.Signals | null = null;
  const stop = (signal: NodeJS.Signals) => {
    stopped = signal;
    controller.abort();
  };
  process.on("SIGINT", stop).on("SIGTERM", stop);
  try {
    const args = [model, "--out", out, ...flags, ...more, ...files];
    const environment = { ...process.env, PYTHONPATH: path };
    const result = await runCalibration(python, args, environment, report, controller.signal);
    if (json) line(result);
    else {
      for (const notice of result.notices) process.stderr.write(`${notice}\n`);
      process.stdout.write(
        `${out}: statistics of ${result.model} over ${result.tokens} tokens, fingerprint ${result.fingerprint}\n`,
      );
    }
  } catch (error) {
    if (stopped === null || !(error instanceof CalibrationFailed)) throw error;
    process.exitCode = stopped === "SIGINT" ? 130 : 143;
  } finally {
    process.off("SIGINT", stop).off("SIGTERM", stop);
  }
}

/** `triattn calibrate`: measures the statistics of a model's queries. */
export function calibrateCommand(): Command {
  const command = new Command("calibrate")
    .description(
      "Measure the query statistics of a model, which policies with trig, norm or expected terms need.",
    )
    .argument(
      "<model>",
      "directory of a Hugging Face causal language model with rotary attention, or its hub name",
    )
    .option("--out <file>", "file to write (default: in your own library, where serve finds it)")
    .option(
      "--text <file...>",
      "UTF-8 text to measure on, or .jsonl with prompt and completion in each line (default: text that comes with triattn)",
    )
    .option("--tokens <n>", "tokens to measure (default: all of the text)")
    .option(
      "--window <n>",
      "tokens run at once; learning writes out a layer's attention over as many (default: 2048)",
    )
    .option("--learn <n>", "tokens that selection is learned from, 0: none (default: 16384)")
    .option(
      "--learn-more <term...>",
      `terms to learn weights for beside the probe: ${LEARNABLE_TOO.join(", ")} (default: none)`,
    )
    .option(
      "--probe-units <n>",
      "hidden units of a probe, 16, 32 or 64: more tell more apart, and cost a round more; 64 learn from a pass backwards too (default: 16)",
    )
    .option("--device <device>", "cpu, cuda, cuda:1, … (default: cuda where there is one)")
    .option(
      "--dtype <dtype>",
      "float32, bfloat16 or float16 (default: float32 on a CPU, else the checkpoint's)",
    )
    .option("--name <name>", "the model's name in the file (default: the directory's)")
    .option("--license <text>", "licence of the statistics, noted in the file")
    .option(
      "--python <path>",
      "interpreter or environment that has torch and transformers (default: the engine's)",
    )
    .option("--json", "lines of JSON on standard output, the result last")
    .action(calibrate);
  return withHelp(command, {
    codes: [2, 3],
    examples: [
      "triattn calibrate ./Qwen3-8B",
      "triattn calibrate ./my-model --text corpus.txt --tokens 100000",
    ],
  });
}
