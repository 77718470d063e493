import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ConfigError } from "@triattn/control";
import { budgetOf, type Keep } from "./arms.ts";
import { dataFiles, readSet, setNames } from "./sets/tasks.ts";
import { list, readText } from "./settings.ts";
import type { Task } from "./task.ts";
import { exactTask } from "./tasks/exact.ts";
import { fidelityTask } from "./tasks/fidelity.ts";
import { traceTasks } from "./tasks/index.ts";
import { needleTask } from "./tasks/needles.ts";
import { vocabulary } from "./tasks/vocabulary.ts";

export interface Choice {
  readonly model: string;
  readonly keeps: readonly Keep[];
  readonly tasks: string;
  readonly limit: number;
  readonly lengths: string;
  readonly textLength: number;
  readonly text?: string | undefined;
  readonly interval: number;
  readonly seed: number;
  readonly data: readonly string[];
  readonly maxTokens: number;
  readonly temperature: number;
  readonly topP: number;
  readonly samples: number;
  readonly whole: boolean;
}

const traceNames = traceTasks.map(({ name }) => name);
const textNames = ["fidelity", "needles"];
/** Every task there is. */
export const taskNames: readonly string[] = [...traceNames, ...textNames, ...setNames];

/** Parts of the text at which a needle is stated. */
const DEPTHS = [0.1, 0.3, 0.5, 0.7, 0.9];

/** Whether a model directory has the vocabulary of the tasks with exact traces; undefined where that is not at hand. */
function hasTraceVocabulary(model: string): boolean {
  try {
    const { model: own } = JSON.parse(readFileSync(join(model, "tokenizer.json"), "utf8"));
    return own.type === "WordLevel" && vocabulary.every((token, id) => own.vocab[token] === id);
  } catch {
    return false;
  }
}

/** Sets whose answers are as long as the model makes them: a part of them is not known beforehand. */
const FREE: ReadonlySet<string> = new Set(["aime24", "aime25", "math-500", "gpqa"]);

/** The tasks that were asked for; `all`: those that the model can be asked. Throws ConfigError. */
export async function chooseTasks(choice: Choice): Promise<Task[]> {
  const { model, keeps, limit, seed, whole } = choice;
  const tiny = hasTraceVocabulary(model);
  const files = dataFiles(choice.data);
  const own = [...(tiny ? traceNames : textNames), ...setNames.filter((name) => files[name] !== undefined)];
  const names = choice.tasks === "all" ? own : list(choice.tasks, (name) => name);
  const lengths = list(choice.lengths, (text) => {
    if (!/^[1-9]\d*$/.test(text))
      throw new ConfigError("--lengths", text, "whole numbers by commas, as 1500,4000");
    return Number(text);
  });
  if (names.length === 0)
    throw new ConfigError("--tasks", choice.tasks, `all, or some of ${taskNames.join(", ")}`);
  if (lengths.length === 0)
    throw new ConfigError("--lengths", choice.lengths, "whole numbers by commas, as 1500");
  const called = (name: string, length: number) => (lengths.length > 1 ? `${name}-${length}` : name);
  const make = async (name: string): Promise<Task[]> => {
    const trace = traceTasks.find((task) => task.name === name);
    if (trace !== undefined) {
      if (!tiny) {
        throw new ConfigError(
          "--tasks",
          name,
          `needs a model of the tasks' own vocabulary, such as tiny; ${model} has another: use ${textNames.join(", ")}`,
        );
      }
      return lengths.map((length) =>
        exactTask(trace, { name: called(name, length), length, limit, seed, whole }),
      );
    }
    if (name === "fidelity") {
      const length = choice.textLength;
      const sizes = { prompt: length, generated: 0 };
      // Compressed in every arm from here on: chunks need not end where the first round is due.
      const from = Math.max(...keeps.map((keep) => budgetOf(keep, sizes))) + 2 * choice.interval;
      if (from >= length) {
        throw new ConfigError(
          "--text-length",
          length,
          `more than ${from}: a shorter text is compressed in no arm`,
        );
      }
      return [fidelityTask({ ...readText(choice.text), length, limit, from })];
    }
    if (name === "needles") {
      return lengths.map((length) =>
        needleTask({
          name: called(name, length),
          ...readText(choice.text),
          length,
          depths: DEPTHS,
          limit,
          seed,
        }),
      );
    }
    if (setNames.includes(name)) {
      const part = keeps.find((keep) => "ratio" in keep);
      if (part !== undefined && FREE.has(name)) {
        throw new ConfigError(
          "--keep",
          part.text,
          `--budget instead, in tokens: how long answers to ${name} get is not known`,
        );
      }
      return [await readSet(name, { ...choice, files })];
    }
    throw new ConfigError("--tasks", name, `all, or some of ${taskNames.join(", ")}`);
  };
  return (await Promise.all(names.map(make))).flat();
}
