import type { Random } from "../random.ts";

/** Seeds of training items and of held-out ones never meet. */
export const splits = ["train", "heldout"] as const;
export type Split = (typeof splits)[number];

/** What a generator makes: a prompt, and the one trace that is right. */
export interface Draft {
  readonly prompt: string;
  /** Everything that is to be generated, one token a character; the end token comes after it. */
  readonly expected: string;
  /** The part of `expected` that answers the question: its last characters. */
  readonly answer: string;
  /** What the item is made of, for people and for other programs. */
  readonly metadata: Readonly<Record<string, unknown>>;
}

export interface Trace extends Draft {
  readonly task: string;
  readonly id: string;
  /** Tokens to generate that were asked for; `expected` and the end token are at most this many. */
  readonly length: number;
}

export interface TraceTask {
  readonly name: string;
  readonly description: string;
  /** The shortest length that it can be asked for, in tokens. */
  readonly least: number;
  /** Between 0.85 and 1 times `length` tokens, the end token included. */
  draft(random: Random, length: number): Draft;
}

export interface TraceGrade {
  /** Whether every token of the trace is right, the end included. */
  readonly exact: boolean;
  /** Whether the answer at its end is right, whatever came before. */
  readonly answer: boolean;
  /** Index of the first wrong token; null when there is none. */
  readonly firstWrong: number | null;
}

/** Grades what was generated. `ended`: whether the end token came by itself. */
export function gradeTrace(trace: Draft, output: string, ended: boolean): TraceGrade {
  const { expected, answer } = trace;
  let at = 0;
  while (at < expected.length && output[at] === expected[at]) at += 1;
  const exact = ended && output === expected;
  return {
    exact,
    answer: ended && output.endsWith(answer),
    firstWrong: exact ? null : at,
  };
}
