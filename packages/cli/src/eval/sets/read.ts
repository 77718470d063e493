import { readFileSync } from "node:fs";
import { ConfigError } from "@triattn/control";
import { z } from "zod";

/** Records of a file, one JSON object a line, each checked. Throws ConfigError that names file, line and field. */
export function readLines<T extends z.ZodType>(flag: string, path: string, schema: T): z.output<T>[] {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new ConfigError(flag, path, `cannot be read (${(error as NodeJS.ErrnoException).code})`);
  }
  const lines = text.split("\n");
  const records = lines.flatMap((line, index) => {
    if (line.trim() === "") return [];
    const where = `${path}, line ${index + 1}`;
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch (error) {
      throw new ConfigError(flag, where, `is not JSON: one object a line (${(error as Error).message})`);
    }
    const parsed = schema.safeParse(value);
    if (parsed.success) return [parsed.data];
    const [issue] = parsed.error.issues;
    throw new ConfigError(flag, where, `${issue?.path.join(".") || "record"}: ${issue?.message}`);
  });
  if (records.length === 0) throw new ConfigError(flag, path, "holds no record: one JSON object a line");
  return records;
}

const text = z.string().min(1);
const answer = z.union([text, z.number()]).transform(String);
const id = z.union([text, z.number()]).transform(String).optional();

/** Names of fields in lower case, as the sets' own files write them in many ways. */
const lowered = (value: unknown): unknown =>
  typeof value === "object" && value !== null && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).map(([name, v]) => [name.toLowerCase(), v]))
    : value;

/** AIME: `problem` and `answer`, a whole number from 0 to 999. */
export const AimeRecord = z.preprocess(
  lowered,
  z.object({ id, problem: text, answer: answer.pipe(z.string().regex(/^\s*0*\d{1,3}\s*$/)) }),
);
/** MATH-500: `problem`, `answer` in LaTeX. */
export const MathRecord = z.preprocess(lowered, z.object({ unique_id: id, problem: text, answer }));
/** GPQA under its own column names. */
export const GpqaRecord = z.preprocess(
  lowered,
  z.object({
    "record id": id,
    question: text,
    "correct answer": text,
    "incorrect answer 1": text,
    "incorrect answer 2": text,
    "incorrect answer 3": text,
  }),
);
/** LongBench, version 1. */
export const LongBenchRecord = z.object({
  _id: id,
  input: z.string(),
  context: text,
  answers: z.array(z.string()).min(1),
  dataset: text,
  all_classes: z.array(z.string()).nullish(),
});
/** RULER as its scripts write it; `task` is taken from the file's name where it is missing. */
export const RulerRecord = z.object({
  index: id,
  input: text,
  outputs: z.array(z.string()).min(1),
  task: text.optional(),
});
