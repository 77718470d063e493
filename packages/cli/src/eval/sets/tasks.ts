import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { ConfigError } from "@triattn/control";
import { z } from "zod";
import { Random } from "../random.ts";
import type { Figures, Item, Profile, Task, Tokenizer } from "../task.ts";
import { aimeAnswer, finalAnswer, mathEngine, sameAnswer } from "./math.ts";
import * as metric from "./metrics.ts";
import { published } from "./published.ts";
import { AimeRecord, GpqaRecord, LongBenchRecord, MathRecord, RulerRecord, readLines } from "./read.ts";

export interface SetOptions {
  readonly files: Readonly<Record<string, string>>;
  readonly limit: number;
  readonly seed: number;
  /** Most tokens of an answer. */
  readonly maxTokens: number;
  readonly temperature: number;
  readonly topP: number;
  readonly samples: number;
}

interface Question {
  readonly id: string;
  readonly text: string;
  /** Whether it goes through the model's chat template. */
  readonly chat: boolean;
  readonly maxTokens: number;
  score(reply: string): number;
}

interface SetShape {
  readonly name: string;
  readonly description: string;
  readonly profile: Profile;
  readonly measure: string;
  readonly questions: readonly Question[];
}

const STEPS = "Please reason step by step, and put your final answer within \\boxed{}.";

function setTask(shape: SetShape, options: SetOptions): Task {
  const { temperature, topP, samples, seed } = options;
  const { profile } = shape;
  const asked = new Map<string, Question>();
  const sampled = temperature > 0 ? `temperature ${temperature}, top-p ${topP}` : "greedy";
  return {
    name: shape.name,
    description: `${shape.description}; ${sampled}, ${samples} a question`,
    profile,
    measures: [{ name: shape.measure, better: "more" }],
    longest: null,
    needsFull: false,
    published: published[shape.name] ?? [],
    items: async (tokenizer: Tokenizer) => {
      const items: Item[] = [];
      for (const question of shape.questions) {
        const prompt = await (question.chat
          ? tokenizer.chat(question.text)
          : tokenizer.encode(question.text));
        for (let sample = 0; sample < samples; sample++) {
          const id = samples === 1 ? question.id : `${question.id} #${sample}`;
          asked.set(id, question);
          items.push({
            id,
            prompt,
            sizes: { prompt: prompt.length, generated: profile === "score" ? 0 : question.maxTokens },
            maxTokens: question.maxTokens,
            sampling:
              temperature > 0
                ? { temperature, top_p: topP, seed: new Random(`${seed}/${id}`).whole(0, 2 ** 31 - 1) }
                : undefined,
          });
        }
      }
      return items;
    },
    grade: (item, reply): Figures => ({ [shape.measure]: asked.get(item.id)?.score(reply.text) ?? 0 }),
  };
}

const flag = (name: string) => `--data ${name}`;

function aime(name: string, path: string, { limit, maxTokens }: SetOptions): SetShape {
  const records = readLines(flag(name), path, AimeRecord).slice(0, limit);
  return {
    name,
    description: `${records.length} problems of ${basename(path)}, answers whole numbers`,
    profile: "generate",
    measure: "exact",
    questions: records.map(({ id, problem, answer }, i) => ({
      id: id ?? `${i}`,
      text: `${problem}\n\n${STEPS}`,
      chat: true,
      maxTokens,
      score: (reply) => Number(aimeAnswer(reply) === Number(answer)),
    })),
  };
}

async function math(path: string, { limit, maxTokens }: SetOptions): Promise<SetShape> {
  const records = readLines(flag("math-500"), path, MathRecord).slice(0, limit);
  const engine = await mathEngine();
  return {
    name: "math-500",
    description: `${records.length} problems of ${basename(path)}, answers equal as numbers or expressions`,
    profile: "generate",
    measure: "exact",
    questions: records.map(({ unique_id: id, problem, answer }, i) => ({
      id: id ?? `${i}`,
      text: `${problem}\n\n${STEPS}`,
      chat: true,
      maxTokens,
      score: (reply) => Number(sameAnswer(engine, finalAnswer(reply), answer)),
    })),
  };
}

const LETTERS = ["A", "B", "C", "D"] as const;

/** The letter that a reply ends with: boxed, or after the word "answer". */
export function letter(reply: string): string | undefined {
  const boxed = finalAnswer(reply)?.match(/^\s*(?:\\text\{)?\(?([A-D])\)?\}?\s*$/)?.[1];
  return boxed ?? [...reply.matchAll(/answer\s*(?:is)?\s*:?\s*\**\(?([A-D])\b/gi)].at(-1)?.[1]?.toUpperCase();
}

function gpqa(path: string, { limit, maxTokens, seed }: SetOptions): SetShape {
  const records = readLines(flag("gpqa"), path, GpqaRecord).slice(0, limit);
  return {
    name: "gpqa",
    description: `${records.length} questions of ${basename(path)}, four choices in random order`,
    profile: "generate",
    measure: "exact",
    questions: records.map((record, i) => {
      const id = record["record id"] ?? `${i}`;
      const right = record["correct answer"];
      const wrong = [1, 2, 3].map((n) => record[`incorrect answer ${n}` as "incorrect answer 1"]);
      const choices = new Random(`gpqa/${seed}/${id}`).shuffle([right, ...wrong]);
      const shown = choices.map((choice, n) => `${LETTERS[n]}. ${choice.trim()}`).join("\n");
      return {
        id,
        text: `${record.question.trim()}\n\n${shown}\n\nPlease reason step by step, and put the letter of your final answer within \\boxed{}.`,
        chat: true,
        maxTokens,
        score: (reply) => Number(letter(reply) === LETTERS[choices.indexOf(right)]),
      };
    }),
  };
}

interface LongBenchSet {
  readonly tokens: number;
  readonly score: (reply: string, truth: string, classes: readonly string[]) => number;
  /** Without a chat template: examples come first. */
  readonly plain?: true;
  /** Only the first line of a reply counts. */
  readonly firstLine?: true;
}

const qa = (tokens: number): LongBenchSet => ({ tokens, score: metric.qaF1 });
const LONG_BENCH: Readonly<Record<string, LongBenchSet>> = {
  narrativeqa: qa(128),
  qasper: qa(128),
  multifieldqa_en: qa(64),
  hotpotqa: qa(32),
  "2wikimqa": qa(32),
  musique: qa(32),
  gov_report: { tokens: 512, score: metric.rougeL },
  qmsum: { tokens: 512, score: metric.rougeL },
  multi_news: { tokens: 512, score: metric.rougeL },
  trec: { tokens: 64, score: metric.classification, plain: true, firstLine: true },
  triviaqa: { tokens: 32, score: metric.qaF1, plain: true, firstLine: true },
  samsum: { tokens: 128, score: metric.rougeL, plain: true, firstLine: true },
  passage_count: { tokens: 32, score: metric.numbers },
  passage_retrieval_en: { tokens: 32, score: metric.retrieval },
  lcc: { tokens: 64, score: metric.codeSimilarity, plain: true },
  "repobench-p": { tokens: 64, score: metric.codeSimilarity, plain: true },
};

function longBenchPrompts(path: string | undefined): Record<string, string> {
  if (path === undefined) {
    throw new ConfigError(
      "--data longbench-prompts",
      "missing",
      "LongBench's own dataset2prompt.json, as --data longbench-prompts=FILE",
    );
  }
  try {
    return z.record(z.string(), z.string()).parse(JSON.parse(readFileSync(path, "utf8")));
  } catch (error) {
    throw new ConfigError(
      "--data longbench-prompts",
      path,
      `a JSON object of prompts (${(error as Error).message})`,
    );
  }
}

function longBench(path: string, { limit, files }: SetOptions): SetShape {
  const records = readLines(flag("longbench"), path, LongBenchRecord).slice(0, limit);
  const prompts = longBenchPrompts(files["longbench-prompts"]);
  return {
    name: "longbench",
    description: `${records.length} records of ${basename(path)}, LongBench's own metrics; the prompt competes`,
    profile: "score",
    measure: "score",
    questions: records.map(({ _id, input, context, answers, dataset, all_classes }, i) => {
      const set = LONG_BENCH[dataset.replace(/_e$/, "")];
      const prompt = prompts[dataset.replace(/_e$/, "")];
      if (set === undefined || prompt === undefined) {
        const known = Object.keys(LONG_BENCH).join(", ");
        throw new ConfigError(flag("longbench"), `${path}: dataset ${dataset}`, `one of ${known}`);
      }
      // One pass: what a context says in braces is no field.
      const text = prompt.replaceAll(/\{(context|input)\}/g, (_, name) =>
        name === "input" ? input : context,
      );
      return {
        id: _id ?? `${dataset}-${i}`,
        text,
        chat: set.plain !== true,
        maxTokens: set.tokens,
        score: (reply) => {
          const given = set.firstLine ? (reply.replace(/^\n+/, "").split("\n")[0] ?? "") : reply;
          return Math.max(...answers.map((truth) => set.score(given, truth, all_classes ?? [])));
        },
      };
    }),
  };
}

const RULER_TOKENS: Readonly<Record<string, number>> = { niah: 128, vt: 30, cwe: 120, fwe: 50, qa: 32 };

function ruler(path: string, { limit }: SetOptions): SetShape {
  const records = readLines(flag("ruler"), path, RulerRecord).slice(0, limit);
  return {
    name: "ruler",
    description: `${records.length} records of ${basename(path)}, RULER's own metrics; the prompt competes`,
    profile: "score",
    measure: "score",
    questions: records.map(({ index, input, outputs, task = basename(path) }, i) => {
      const kind = Object.keys(RULER_TOKENS).find((name) => task.startsWith(name));
      if (kind === undefined) {
        throw new ConfigError(
          flag("ruler"),
          `${path}: task ${task}`,
          `a field task, or a file's name, that begins with ${Object.keys(RULER_TOKENS).join(", ")}`,
        );
      }
      return {
        id: `${task}-${index ?? i}`,
        text: input,
        chat: false,
        maxTokens: RULER_TOKENS[kind] as number,
        score: (reply) => metric.ruler(task, reply, outputs),
      };
    }),
  };
}

export const setNames: readonly string[] = ["aime24", "aime25", "math-500", "gpqa", "longbench", "ruler"];

/** A task that reads a file. Throws ConfigError for one that is not there or not right. */
export async function readSet(name: string, options: SetOptions): Promise<Task> {
  const path = options.files[name];
  if (path === undefined) {
    throw new ConfigError(
      "--tasks",
      name,
      `needs data: --data ${name}=FILE.jsonl (formats: docs/evaluation/README.md)`,
    );
  }
  const shapes: Record<string, () => SetShape | Promise<SetShape>> = {
    aime24: () => aime(name, path, options),
    aime25: () => aime(name, path, options),
    "math-500": () => math(path, options),
    gpqa: () => gpqa(path, options),
    longbench: () => longBench(path, options),
    ruler: () => ruler(path, options),
  };
  const make = shapes[name];
  if (make === undefined) throw new ConfigError("--tasks", name, `one of ${setNames.join(", ")}`);
  return setTask(await make(), options);
}

/** `name=FILE` of each --data. Throws ConfigError. */
export function dataFiles(texts: readonly string[]): Record<string, string> {
  const known = [...setNames, "longbench-prompts"];
  return Object.fromEntries(
    texts.map((text) => {
      const [name = "", path = ""] = text.split(/=(.*)/s);
      if (!known.includes(name) || path === "") {
        throw new ConfigError("--data", text, `NAME=FILE, the name one of ${known.join(", ")}`);
      }
      return [name, path];
    }),
  );
}
