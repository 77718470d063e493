import { ConfigError } from "@triattn/control";
import { Random } from "../random.ts";
import { dfs } from "./dfs.ts";
import { grammar } from "./grammar.ts";
import type { Split, Trace, TraceTask } from "./trace.ts";
import { passcode, recall } from "./walk.ts";

/** Tasks with exact traces, for the model that `examples/tiny-reasoner` trains. */
export const traceTasks: readonly TraceTask[] = [grammar, dfs, passcode, recall];

/** Throws ConfigError for a name that is not there. */
export function traceTask(name: string): TraceTask {
  const found = traceTasks.find((task) => task.name === name);
  if (found !== undefined) return found;
  throw new ConfigError("--task", name, `one of ${traceTasks.map((task) => task.name).join(", ")}`);
}

export interface Draw {
  readonly split: Split;
  readonly seed: number;
  readonly index: number;
  /** Tokens to generate, at most. */
  readonly length: number;
}

/** One item of a task: the same for the same arguments, on every machine. Throws ConfigError. */
export function drawTrace(task: TraceTask, { split, seed, index, length }: Draw): Trace {
  if (length < task.least || length > 6_500) {
    throw new ConfigError("--length", length, `from ${task.least} to 6500 tokens for the task ${task.name}`);
  }
  const id = `${task.name}-${length}/${split}/${seed}/${index}`;
  return { task: task.name, id, length, ...task.draft(new Random(id), length) };
}
