import { PolicyRefused } from "@triattn/control";
import { NotCompressed } from "../errors.ts";
import { type Arm, budgetOf, checkBudgetOf } from "./arms.ts";
import type { EngineGroup } from "./engines.ts";
import type { Progress } from "./progress.ts";
import type { Batch, Row, RowFile } from "./rows.ts";
import type { Item, Profile, Reply, Task } from "./task.ts";

export interface RunOptions {
  readonly tasks: readonly Task[];
  readonly arms: readonly Arm[];
  readonly rows: RowFile;
  readonly progress: Progress;
  /** Starts engines for a profile. */
  readonly start: (profile: Profile, first: Arm) => Promise<EngineGroup>;
}

/** Runs `work` on all items, so many at once; the first failure ends it. */
async function pool<T>(items: readonly T[], size: number, work: (item: T) => Promise<void>): Promise<void> {
  const queue = items[Symbol.iterator]();
  let failed = false;
  const worker = async () => {
    for (const item of queue) {
      if (failed) return;
      try {
        await work(item);
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(size, items.length) }, worker));
}

/** What is resident of the tokens that could go: all but a pinned prompt. */
function keptRatio(arm: Arm, item: Item, computed: number, evicted: number): number {
  const pinned = arm.pin === "prompt" && item.sizes.generated > 0 ? item.sizes.prompt : 0;
  return computed <= pinned ? 1 : (computed - pinned - evicted) / (computed - pinned);
}

/**
 * Runs every arm on every item, the same prompts in each, and keeps each finished row at once. Throws EngineDied when
 * the engine dies, and NotCompressed for a row in which a round was due and none fired.
 */
export async function run(options: RunOptions): Promise<void> {
  for (const profile of ["generate", "score"] as const) {
    const tasks = options.tasks.filter((task) => task.profile === profile);
    const { arms, rows } = options;
    // Nothing is left to run: the report needs no engine.
    if (tasks.every((task) => arms.every((arm) => rows.complete(arm.label, task.name)))) continue;
    const first = options.arms[0];
    if (first === undefined) throw new Error("there is no arm to run");
    const engines = new Engines((arm) => options.start(profile, arm), await options.start(profile, first));
    try {
      await runProfile(options, engines, tasks);
    } finally {
      await engines.current.stop();
    }
  }
}

/** The engine that runs now; another one where a policy cannot be put in force while one runs. */
class Engines {
  current: EngineGroup;
  readonly #start: (first: Arm) => Promise<EngineGroup>;

  constructor(start: (first: Arm) => Promise<EngineGroup>, current: EngineGroup) {
    this.#start = start;
    this.current = current;
  }

  /** Throws PolicyRefused when an engine that starts with the policy refuses it as well. */
  async use(arm: Arm): Promise<EngineGroup> {
    try {
      await this.current.use(arm);
    } catch (error) {
      if (!(error instanceof PolicyRefused)) throw error;
      await this.current.stop();
      this.current = await this.#start(arm);
    }
    return this.current;
  }
}

async function runProfile(options: RunOptions, engines: Engines, tasks: readonly Task[]): Promise<void> {
  const { arms, rows, progress } = options;
  const all = new Map<Task, readonly Item[]>();
  for (const task of tasks) {
    const items = await task.items(engines.current.tokenizer);
    all.set(task, items);
    for (const arm of arms) {
      for (const item of items) checkBudgetOf(arm, item.sizes, engines.current.blockSize, task.name);
    }
  }
  // Replies of the full arm, where a task compares with them.
  const full = new Map<string, Reply>();
  const left = (arm: Arm, task: Task) =>
    (all.get(task) ?? []).filter(({ id }) => !rows.has(arm.label, task.name, id));
  for (const arm of arms) {
    const items = new Map<Task, readonly Item[]>();
    for (const task of tasks) {
      // A run that goes on asks the full arm again for what it still compares with.
      const again = arm.keep === null && task.needsFull && arms.some((other) => left(other, task).length > 0);
      const due = again ? (all.get(task) ?? []) : left(arm, task);
      if (due.length > 0) items.set(task, due);
      // All rows are there, and the run ended before it could say so.
      else if (!rows.complete(arm.label, task.name)) rows.addBatch(batchOf(arm, task, engines.current));
    }
    if (items.size === 0) continue;
    const engine = await engines.use(arm);
    await runBatch({ arm, items, engine, rows, progress, full });
  }
}

function batchOf(arm: Arm, task: Task, engine: EngineGroup, counts: Partial<Batch["batch"]> = {}): Batch {
  const none = { seconds: 0, generatedTokens: 0, preemptions: 0, engine: engine.description };
  return { arm: arm.label, task: task.name, batch: { ...none, ...counts } };
}

interface BatchOptions {
  readonly arm: Arm;
  readonly items: ReadonlyMap<Task, readonly Item[]>;
  readonly engine: EngineGroup;
  readonly rows: RowFile;
  readonly progress: Progress;
  readonly full: Map<string, Reply>;
}

/** All that an arm has left, of all tasks beside one another: one task after another would leave room at each one's end. */
async function runBatch(options: BatchOptions): Promise<void> {
  const { arm, items, engine, rows, progress, full } = options;
  const before = engine.preemptions;
  const began = performance.now();
  const generated = new Map([...items.keys()].map((task) => [task, 0]));
  let ended = began;
  const work = [...items].flatMap(([task, due]) => due.map((item) => ({ task, item })));
  await pool(work, engine.concurrency, async ({ task, item }) => {
    const budget = budgetOf(arm.keep, item.sizes);
    const { reply, rounds, tokensEvicted, computed, due, seconds, answered } = await engine.request(
      item,
      budget,
    );
    ended = Math.max(ended, answered);
    const { interval } = arm.document;
    if (due && (rounds === 0 || tokensEvicted === 0)) {
      throw new NotCompressed(
        `${arm.label} did not compress ${task.name} ${item.id}: ${item.prompt.length + reply.tokens.length} tokens, ` +
          `budget ${budget}, a round every ${interval}, and no round reported`,
      );
    }
    if (arm.keep === null && rounds > 0) throw new NotCompressed(`the full arm compressed ${item.id}`);
    const key = `${task.name} ${item.id}`;
    if (arm.keep === null && task.needsFull) full.set(key, reply);
    generated.set(task, (generated.get(task) ?? 0) + reply.tokens.length);
    const row: Row = {
      arm: arm.label,
      task: task.name,
      id: item.id,
      figures: task.grade(item, reply, full.get(key)),
      promptTokens: item.prompt.length,
      generatedTokens: reply.tokens.length,
      budget,
      rounds,
      tokensEvicted,
      keptRatio: keptRatio(arm, item, computed, tokensEvicted),
      seconds: Number(seconds.toFixed(3)),
    };
    rows.add(row);
    progress.done(row);
  });
  const seconds = (ended - began) / 1000;
  const total = [...generated.values()].reduce((sum, tokens) => sum + tokens, 0);
  const preemptions = engine.preemptions - before;
  for (const [task, generatedTokens] of generated) {
    // A task's part of the time is that of its tokens: whose they are makes no difference to a step.
    const part = (seconds * generatedTokens) / Math.max(1, total);
    rows.addBatch(batchOf(arm, task, engine, { seconds: part, generatedTokens, preemptions }));
  }
}
