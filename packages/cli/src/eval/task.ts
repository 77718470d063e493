import type { Sizes } from "./arms.ts";

/** Log-probabilities that an engine gave for one position of a prompt: by token id. */
export type PositionLogprobs = Readonly<
  Record<string, { readonly logprob: number; readonly rank?: number | null }>
>;

/** What an engine answered. */
export interface Reply {
  readonly text: string;
  /** Generated token ids, the end token included where the engine gives it. */
  readonly tokens: readonly number[];
  /** `stop`: it ended by itself. `length`: it was cut off. `wrong`: its client had seen enough. */
  readonly finish: string;
  /** One entry a prompt token, null for the first; only where the item asked for them. */
  readonly promptLogprobs: readonly (PositionLogprobs | null)[] | null;
}

/** One request, the same in every arm. */
export interface Item {
  /** Unique within its task. */
  readonly id: string;
  readonly prompt: readonly number[];
  /** What the budget is made from. */
  readonly sizes: Sizes;
  readonly maxTokens: number;
  /** The tokens of its one right answer: with them a request ends at the first that is wrong. */
  readonly expected?: readonly number[] | undefined;
  /** Whether to go on after the end token. */
  readonly sampling?: Readonly<Record<string, number | boolean>> | undefined;
  /** Log-probabilities wanted at every position of the prompt: this many of the most likely tokens. */
  readonly promptLogprobs?: number | undefined;
}

/** A figure of each row. */
export interface Measure {
  readonly name: string;
  readonly better: "more" | "less";
}

/** Figures of one row, by the measure's name. */
export type Figures = Readonly<Record<string, number>>;

export interface Tokenizer {
  /** Token ids of a text, as it is. */
  encode(text: string): Promise<readonly number[]>;
  /** Token ids of a conversation in the model's own chat template, ready for the answer. */
  chat(question: string): Promise<readonly number[]>;
}

/**
 * How the engine has to be run: `generate` many requests at once; `score` one at a time, prefilled in chunks of one
 * interval, so that rounds fire where they would while decoding.
 */
export type Profile = "generate" | "score";

export interface Task {
  /** As it is called in rows and reports. */
  readonly name: string;
  /** What it measures, in a few words. */
  readonly description: string;
  readonly profile: Profile;
  /** The first one is what reports and plots show. `exact` is 0 or 1 a row. */
  readonly measures: readonly Measure[];
  /** Whether requests end at their first wrong token: how fast an arm is cannot be told from them. */
  readonly untilWrong?: boolean;
  /** Longest request in tokens; null: the model's own limit. */
  readonly longest: number | null;
  items(tokenizer: Tokenizer): Promise<readonly Item[]>;
  /** Figures of a reply; `full` is the reply of the full arm to the same item. */
  grade(item: Item, reply: Reply, full: Reply | undefined): Figures;
  /** Whether `grade` needs the full arm's reply. */
  readonly needsFull: boolean;
  /** Published figures to print beside these, a line each. */
  readonly published?: readonly string[];
}
