import { ConfigError } from "@triattn/control";
import type { BackendName } from "../serve/backends.ts";
import type { EvalBackend } from "./backend.ts";
import { sglang } from "./backend-sglang.ts";
import { vllm } from "./backend-vllm.ts";
import type { Task } from "./task.ts";

const all: Readonly<Record<BackendName, EvalBackend>> = { vllm, sglang };

/** What an evaluation has to know of the engine of a name. */
export const evalBackend = (name: BackendName): EvalBackend => all[name];

/** Throws ConfigError for tasks that an engine cannot be asked: nothing would be compressed in them. */
export function checkTasks(name: BackendName, tasks: readonly Task[], asked: string): void {
  const { noScores } = evalBackend(name);
  const scored = tasks.filter(({ profile }) => profile === "score").map((task) => task.name);
  if (noScores === null || scored.length === 0) return;
  const others = tasks.filter(({ profile }) => profile !== "score").map((task) => task.name);
  const rest = others.length > 0 ? `--tasks ${others.join(",")}, or ` : "";
  throw new ConfigError(
    "--tasks",
    asked,
    `${noScores}, so ${scored.join(", ")} would measure full KV: ${rest}--backend vllm`,
  );
}
