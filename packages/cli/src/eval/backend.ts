import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import type { PolicyDocument } from "@triattn/protocol";
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
  /** Policies of all arms: what they need at start-up is there from the start. */
  readonly policies: readonly PolicyDocument[];
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
  /** Engines beside one another on a CPU, where the model is small and requests are many. */
  readonly enginesOnCpu: number;
  /** What its environment needs on a CPU, where the user's has not said otherwise. */
  cpuEnvironment(environment: NodeJS.ProcessEnv): NodeJS.ProcessEnv;
  client(url: string, served: string): EngineClient;
  /** Whether a round fires before the last token of such a request is computed, once `trigger` tokens are resident. */
  firesAt(trigger: number, request: Grown): boolean;
  /** What is to be known of sampled answers, where the flags do not settle it. */
  samplingNote(flags: readonly string[]): string | null;
}

/** Half of the machine: models are small, and another engine or the engine's other processes want the rest. */
export const cpuThreads = ({ OMP_NUM_THREADS }: NodeJS.ProcessEnv): string =>
  OMP_NUM_THREADS ?? String(Math.max(1, Math.floor(availableParallelism() / 2)));

/** Tokens of a part of an answer that is followed until it is wrong: a few too many, and a server that has time. */
export const STREAM_INTERVAL = 16;

/** Tokens of a block of the KV cache on a CPU. */
export const CPU_BLOCK = 32;

/** Bytes of KV of one token in float32, by the model's own configuration; undefined where that is not at hand. */
function tokenBytes(model: string): number | undefined {
  try {
    const config = JSON.parse(readFileSync(join(model, "config.json"), "utf8"));
    const { num_hidden_layers: layers, num_attention_heads: heads, hidden_size: hidden } = config;
    const { num_key_value_heads: kvHeads = heads, head_dim: dim = hidden / heads } = config;
    const bytes = layers * kvHeads * dim * 2 * 4;
    return Number.isFinite(bytes) ? bytes : undefined;
  } catch {
    return undefined;
  }
}

/** Bytes of KV in float32 of one request, with the block that a step may need besides; undefined as above. */
export function requestBytes(model: string, longest: number | null): number | undefined {
  const bytes = tokenBytes(model);
  return bytes && bytes * (Math.ceil((longest ?? 4096) / CPU_BLOCK) + 2) * CPU_BLOCK;
}

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
