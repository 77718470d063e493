import { availableParallelism } from "node:os";
import type { EngineEnvironment } from "../serve/python.ts";
import type { EngineClient } from "./client.ts";
import type { Item, Profile, Reply } from "./task.ts";

/** What an engine is started for. */
export interface EngineNeeds {
  readonly model: string;
  readonly profile: Profile;
  /** Requests at once. */
  readonly concurrency: number;
  readonly interval: number;
  /** Largest budget of the arms' policies: an engine refuses one that its cache cannot hold. */
  readonly budget: number;
  /** Longest request in tokens; null: the model's own limit. */
  readonly longest: number | null;
  /** The user's own flags of the engine; they come last, so that they win. */
  readonly flags: readonly string[];
}

/** What an evaluation has to know of an engine. */
export interface EvalBackend {
  /** Whether it will run on a CPU. */
  onCpu(
    engine: Pick<EngineEnvironment, "distribution">,
    flags: readonly string[],
    environment: NodeJS.ProcessEnv,
  ): boolean;
  /** Its flags, the user's aside. The server calls the model `served`. */
  flags(needs: EngineNeeds, served: string, cpu: boolean): string[];
  /** What its environment needs on a CPU, where the user's has not said otherwise. */
  cpuEnvironment(environment: NodeJS.ProcessEnv): NodeJS.ProcessEnv;
  client(url: string, served: string): EngineClient;
  /** Whether a round fires before the last token of such a request is computed, once `trigger` tokens are resident. */
  firesAt(trigger: number, request: Grown): boolean;
  /** What is to be known of sampled answers, where the flags do not settle it. */
  samplingNote(flags: readonly string[]): string | null;
}

/** Half of the machine: requests are few, and models small. */
export const cpuThreads = ({ OMP_NUM_THREADS }: NodeJS.ProcessEnv): string =>
  OMP_NUM_THREADS ?? String(Math.max(1, Math.floor(availableParallelism() / 2)));

/** A request that ended. */
export interface Grown {
  readonly prompt: number;
  readonly generated: number;
  /** Tokens of a chunk of its prefill; null: the engine's own choice. */
  readonly chunk: number | null;
}

/** Of a request: the last token generated is never computed; rounds fire before a step, on what is computed by then. */
export const beforeLastStep = ({ prompt, generated }: Grown): number => prompt + generated - 2;

/** Whether a request grew so long that a round had to fire. */
export function roundsDue(
  { firesAt }: EvalBackend,
  { profile, interval }: Pick<EngineNeeds, "profile" | "interval">,
  item: Item,
  reply: Reply,
  budget: number,
): boolean {
  if (budget === 0) return false;
  const chunk = profile === "score" ? interval : null;
  return firesAt(budget + interval, { prompt: item.prompt.length, generated: reply.tokens.length, chunk });
}
