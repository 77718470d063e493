import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ConfigError } from "@triattn/control";
import { budgetOf, type Keep } from "./arms.ts";
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
}

const traceNames = traceTasks.map(({ name }) => name);
const textNames = ["fidelity", "needles"];
/** Every task there is. */
export const taskNames: readonly string[] = [...traceNames, ...textNames];

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

/** The tasks that were asked for; `all`: those that the model can be asked. Throws ConfigError. */
export function chooseTasks(choice: Choice): Task[] {
  const { model, keeps, limit, seed } = choice;
  const tiny = hasTraceVocabulary(model);
  const names = choice.tasks === "all" ? (tiny ? traceNames : textNames) : list(choice.tasks, (name) => name);
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
  return names.flatMap((name): Task[] => {
    const trace = traceTasks.find((task) => task.name === name);
    if (trace !== undefined) {
      if (!tiny) {
        throw new ConfigError(
          "--tasks",
          name,
          `needs a model of the tasks' own vocabulary, such as tiny; ${model} has another: use ${textNames.join(", ")}`,
        );
      }
      return lengths.map((length) => exactTask(trace, { name: called(name, length), length, limit, seed }));
    }
    if (name === "fidelity") {
      const length = choice.textLength;
      const sizes = { prompt: length, generated: 0 };
      // Compressed in every arm from here on.
      const from = Math.max(...keeps.map((keep) => budgetOf(keep, sizes))) + choice.interval;
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
    throw new ConfigError("--tasks", name, `all, or some of ${taskNames.join(", ")}`);
  });
}
