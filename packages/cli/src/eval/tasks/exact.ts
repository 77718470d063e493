import type { Item, Task } from "../task.ts";
import { drawTrace } from "./index.ts";
import { gradeTrace, type Trace, type TraceTask } from "./trace.ts";
import { decode, EOS, encode } from "./vocabulary.ts";

export interface ExactOptions {
  readonly name: string;
  readonly length: number;
  readonly limit: number;
  readonly seed: number;
  /** Whether to generate on after a wrong token: only then is there an answer to grade. */
  readonly whole: boolean;
}

/** Room beyond the right trace: a wrong one is cut off soon after it should have ended. */
const SLACK = 16;
/** Longest prompt of any task, in tokens. */
const LONGEST_PROMPT = 512;

/** A task with exact traces, for the model of `examples/tiny-reasoner`: held-out items, greedy. */
export function exactTask(task: TraceTask, { name, length, limit, seed, whole }: ExactOptions): Task {
  const traces = new Map<string, Trace>();
  for (let index = 0; index < limit; index++) {
    const trace = drawTrace(task, { split: "heldout", seed, index, length });
    traces.set(trace.id, trace);
  }
  return {
    name,
    description: `${task.description}; ${length} tokens`,
    profile: "generate",
    measures: [
      { name: "exact", better: "more" },
      ...(whole ? [{ name: "answer", better: "more" } as const] : []),
      { name: "right", better: "more" },
    ],
    untilWrong: !whole,
    longest: LONGEST_PROMPT + length + SLACK,
    needsFull: false,
    items: async () =>
      [...traces.values()].map((trace): Item => {
        const prompt = encode(trace.prompt);
        const generated = trace.expected.length + 1;
        return {
          id: trace.id,
          prompt,
          sizes: { prompt: prompt.length, generated },
          maxTokens: generated + SLACK,
          ...(whole ? {} : { expected: [...encode(trace.expected), EOS] }),
        };
      }),
    grade: (item, reply) => {
      const trace = traces.get(item.id) as Trace;
      // By the ids themselves: an engine that detokenizes in its own way changes nothing.
      const ended = reply.tokens.at(-1) === EOS;
      const grade = gradeTrace(trace, decode(reply.tokens), ended);
      return {
        exact: Number(grade.exact),
        ...(whole ? { answer: Number(grade.answer) } : {}),
        right: grade.firstWrong === null ? 1 : grade.firstWrong / (trace.expected.length + 1),
      };
    },
  };
}

/** Whether a tokenizer is that of these tasks: by a text that any other one cuts differently. */
export function isTraceVocabulary(ids: readonly number[]): boolean {
  return JSON.stringify(ids) === JSON.stringify(encode(PROBE));
}
export const PROBE = "@012ab*Z9\n?=<";
