import type { BackendName } from "../serve/backends.ts";
import type { EvalBackend } from "./backend.ts";
import { sglang } from "./backend-sglang.ts";
import { vllm } from "./backend-vllm.ts";

const all: Readonly<Record<BackendName, EvalBackend>> = { vllm, sglang };

/** What an evaluation has to know of the engine of a name. */
export const evalBackend = (name: BackendName): EvalBackend => all[name];
