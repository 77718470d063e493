import { closeSync, existsSync, fsyncSync, openSync, readFileSync, truncateSync, writeSync } from "node:fs";
import { ConfigError } from "@triattn/control";
import { z } from "zod";
import { onDisk } from "../errors.ts";

/** One finished request of one arm. */
export const Row = z.strictObject({
  arm: z.string(),
  task: z.string(),
  id: z.string(),
  figures: z.record(z.string(), z.number()),
  promptTokens: z.int(),
  generatedTokens: z.int(),
  /** KV budget in resident tokens; 0: nothing is compressed. */
  budget: z.int(),
  rounds: z.int(),
  tokensEvicted: z.int(),
  /** Of the tokens that could go (all but a pinned prompt): the part that is resident at the end. */
  keptRatio: z.number(),
  /** From sending the request to its answer. */
  seconds: z.number(),
});
export type Row = z.infer<typeof Row>;

/**
 * How long an arm took for a task: its part, by tokens, of a batch in which all tasks run; written when all of the batch is
 * done. Preemptions are those of the whole batch.
 */
export const Batch = z.strictObject({
  arm: z.string(),
  task: z.string(),
  batch: z.strictObject({
    seconds: z.number(),
    generatedTokens: z.int(),
    preemptions: z.int(),
    engine: z
      .strictObject({ name: z.string(), version: z.string(), runner: z.string(), count: z.int().optional() })
      .optional(),
  }),
});
export type Batch = z.infer<typeof Batch>;

/** What a file of rows belongs to: rows of other settings must not be mixed with them. */
export type Settings = Readonly<Record<string, unknown>>;

const Head = z.strictObject({ triattnEval: z.literal(1), settings: z.record(z.string(), z.unknown()) });

const keyOf = ({ arm, task, id }: Pick<Row, "arm" | "task" | "id">) => JSON.stringify([arm, task, id]);

/** Settings that files of before they had a name were written with. */
const UNNAMED: Settings = { backend: "vllm", whole: true };

/** Settings of which more may come: arms and tasks by name. What is there already has to stay as it is. */
const OPEN = ["arms", "tasks"];

function* differences(
  before: Settings,
  now: Settings,
  path = "",
): Generator<readonly [string, string, string]> {
  for (const name of new Set([...Object.keys(before), ...Object.keys(now)])) {
    const [then, asked] = [before[name], now[name]];
    if (path === "" && OPEN.includes(name)) {
      const common = Object.keys(asked as Settings).filter((key) => Object.hasOwn(then as Settings, key));
      const some = (all: unknown) => Object.fromEntries(common.map((key) => [key, (all as Settings)[key]]));
      yield* differences(some(then), some(asked), `${name}.`);
    } else if (JSON.stringify(then) !== JSON.stringify(asked)) {
      const short = (value: unknown) => (JSON.stringify(value) ?? "none").slice(0, 200);
      yield [path + name, short(then), short(asked)];
    }
  }
}

/** Rows on disk, one JSON object a line, each there whole or not at all; the first line says what they belong to. */
export class RowFile {
  readonly path: string;
  readonly #rows = new Map<string, Row>();
  readonly #batches: Batch[] = [];
  #file: number | undefined;

  private constructor(path: string) {
    this.path = path;
  }

  /**
   * Opens a file of rows to go on with, or a new one. Throws ConfigError for one that is damaged or of other settings,
   * EnvironmentError where the disk refuses.
   */
  static async open(path: string, settings: Settings, resume: boolean): Promise<RowFile> {
    const rows = new RowFile(path);
    const there = existsSync(path);
    if (there && !resume) {
      throw new ConfigError("--out", path, `is there already: --resume ${path} goes on with it`);
    }
    await onDisk(path, () => {
      if (there) rows.#read(settings);
      rows.#file = openSync(path, "a");
      // Arms and tasks that came later have a line of their own.
      if (rows.#empty || there) rows.#append({ triattnEval: 1, settings });
    });
    return rows;
  }

  #empty = true;

  #read(settings: Settings): void {
    const text = readFileSync(this.path, "utf8");
    const end = text.lastIndexOf("\n") + 1;
    // What an end in the middle of a line left behind.
    if (end < text.length) truncateSync(this.path, Buffer.byteLength(text.slice(0, end)));
    const lines = text.slice(0, end).split("\n").slice(0, -1);
    for (const [index, line] of lines.entries()) {
      const where = `${this.path}, line ${index + 1}`;
      let value: unknown;
      try {
        value = JSON.parse(line);
      } catch {
        throw new ConfigError("--resume", where, "is not JSON: take the line out, or begin a new file");
      }
      if (index === 0 || Head.safeParse(value).success) this.#check(value, settings, where);
      else this.#take(value, where);
    }
  }

  #check(value: unknown, settings: Settings, where: string): void {
    const head = Head.safeParse(value);
    if (!head.success) {
      throw new ConfigError("--resume", where, "is no file of rows: name one that triattn eval wrote");
    }
    const now = JSON.parse(JSON.stringify(settings)) as Settings;
    for (const [name, then, asked] of differences({ ...UNNAMED, ...head.data.settings }, now)) {
      throw new ConfigError(
        "--resume",
        this.path,
        `${name} was ${then}, is now ${asked}: ask for the same again, or begin a new file`,
      );
    }
    this.#empty = false;
  }

  #take(value: unknown, where: string): void {
    const row = Row.safeParse(value);
    if (row.success) {
      this.#rows.set(keyOf(row.data), row.data);
      return;
    }
    const batch = Batch.safeParse(value);
    if (!batch.success) {
      const issue = row.error.issues[0];
      throw new ConfigError("--resume", where, `is no row (${issue?.path.join(".")}: ${issue?.message})`);
    }
    this.#batches.push(batch.data);
  }

  get rows(): readonly Row[] {
    return [...this.#rows.values()];
  }

  get batches(): readonly Batch[] {
    return this.#batches;
  }

  has(arm: string, task: string, id: string): boolean {
    return this.#rows.has(keyOf({ arm, task, id }));
  }

  /** Whether an arm has been through all of a task. */
  complete(arm: string, task: string): boolean {
    return this.#batches.some((batch) => batch.arm === arm && batch.task === task);
  }

  add(row: Row): void {
    if (this.has(row.arm, row.task, row.id)) return;
    this.#append(row);
    this.#rows.set(keyOf(row), row);
  }

  addBatch(batch: Batch): void {
    this.#append(batch);
    this.#batches.push(batch);
  }

  #append(value: unknown): void {
    if (this.#file === undefined) throw new Error("the file of rows is closed");
    writeSync(this.#file, `${JSON.stringify(value)}\n`);
    fsyncSync(this.#file);
  }

  close(): void {
    if (this.#file !== undefined) closeSync(this.#file);
    this.#file = undefined;
  }
}
