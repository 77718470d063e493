import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ConfigError } from "@triattn/control";
import { Command, Option } from "commander";
import { onDisk } from "../errors.ts";
import { Random } from "../eval/random.ts";
import { drawTrace, traceTask, traceTasks } from "../eval/tasks/index.ts";
import { type Split, splits, type Trace } from "../eval/tasks/trace.ts";
import { EOS, encode, tokenizerJson, vocabulary } from "../eval/tasks/vocabulary.ts";
import { withHelp } from "./help.ts";
import { wholeNumber } from "./serve.ts";

interface Flags {
  task: string;
  count: number;
  length: string;
  seed: number;
  first: number;
  split: Split;
  json?: boolean;
  ids?: boolean;
}

/** `N` or `N-M`, in tokens. Throws ConfigError. */
function lengths(text: string): readonly [least: number, most: number] {
  const [, least = "", most = least] = /^(\d+)(?:-(\d+))?$/.exec(text) ?? [];
  if (least === "" || Number(least) > Number(most)) {
    throw new ConfigError("--length", text, "tokens, as 1500 or 200-1500");
  }
  return [Number(least), Number(most)];
}

function* draw(flags: Flags): Generator<Trace> {
  const tasks = flags.task === "all" ? traceTasks : flags.task.split(",").map(traceTask);
  const [least, most] = lengths(flags.length);
  for (let index = flags.first; index < flags.first + flags.count; index++) {
    const task = tasks[index % tasks.length] as (typeof tasks)[number];
    const { seed, split } = flags;
    const length = new Random(`length/${split}/${seed}/${index}`).whole(Math.max(least, task.least), most);
    yield drawTrace(task, { split, seed, index, length });
  }
}

/** One line of JSON: what a training program needs. */
function line(trace: Trace, ids: boolean): string {
  const { task, id, prompt, expected } = trace;
  const tokens = ids ? { promptIds: encode(prompt), expectedIds: [...encode(expected), EOS] } : {};
  return JSON.stringify({ task, id, prompt, expected, ...tokens });
}

/** Writes to standard output, and waits for a reader that is slower; false when it has gone (`… | head`). */
async function written(text: string): Promise<boolean> {
  if (!process.stdout.writable) return false;
  if (process.stdout.write(text)) return true;
  return once(process.stdout, "drain").then(
    () => true,
    () => false,
  );
}

export function generateCommand(): Command {
  const command = new Command("generate")
    .summary("print items of the tasks with exact traces")
    .description("Print items of the tasks with exact traces, drawn afresh from a seed.")
    .option("--task <name>", `all, or some of ${traceTasks.map(({ name }) => name).join(", ")}`, "all")
    .option("--count <n>", "items", wholeNumber("--count", 1), 1)
    .option("--length <tokens>", "tokens of a trace, at most: N, or N-M to draw it from", "1500")
    .option("--seed <n>", "another seed, other items", wholeNumber("--seed", 0), 0)
    .option("--first <n>", "number of the first item", wholeNumber("--first", 0), 0)
    .addOption(
      new Option("--split <name>", "training and held-out items never meet").choices(splits).default("train"),
    )
    .option("--json", "one JSON object a line: task, id, prompt, expected")
    .option("--ids", "with --json: token ids as well")
    .action(async (flags: Flags) => {
      for (const trace of draw(flags)) {
        const text = flags.json
          ? `${line(trace, flags.ids === true)}\n`
          : `── ${trace.id}\n${trace.prompt}──\n${trace.expected}`;
        if (!(await written(text))) return;
      }
    });
  return withHelp(command, {
    codes: [2],
    examples: ["triattn eval generate --task dfs --length 300", "triattn eval generate --count 1000 --json"],
  });
}

export function tokenizerCommand(): Command {
  const command = new Command("tokenizer")
    .summary("write the tokenizer of these tasks")
    .description("Write the tokenizer of these tasks, one token a character, as a Hugging Face directory.")
    .argument("<directory>", "where; made if it is not there")
    .action(async (directory: string) => {
      const files = {
        "tokenizer.json": tokenizerJson(),
        "tokenizer_config.json": {
          tokenizer_class: "PreTrainedTokenizerFast",
          eos_token: vocabulary[EOS],
          pad_token: vocabulary[0],
          clean_up_tokenization_spaces: false,
          model_max_length: 8192,
        },
        "generation_config.json": { eos_token_id: EOS, pad_token_id: 0, do_sample: false },
      };
      await onDisk(directory, () => {
        mkdirSync(directory, { recursive: true });
        for (const [name, content] of Object.entries(files)) {
          writeFileSync(join(directory, name), `${JSON.stringify(content, null, 1)}\n`);
        }
      });
    });
  return withHelp(command, { codes: [3], examples: ["triattn eval tokenizer ./my-model"] });
}
