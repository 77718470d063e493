import { setTimeout as sleep } from "node:timers/promises";
import { ConfigError } from "@triattn/control";
import type { ApiState } from "@triattn/protocol";
import { Command } from "commander";
import { drive, type LoadOptions } from "../bench/load/drive.ts";
import {
  armOf,
  counted,
  difference,
  type LoadArm,
  type LoadReport,
  loadPlot,
  loadTable,
} from "../bench/load/report.ts";
import { save } from "../bench/save.ts";
import { EnvironmentError } from "../errors.ts";
import { baseUrl, ControlClient, DEFAULT_URL } from "../http/client.ts";
import { onSignals, signalCode } from "../serve/signals.ts";
import { withHelp } from "./help.ts";
import { wholeNumber } from "./serve.ts";
import { readToken } from "./top.ts";

interface Flags {
  model?: string;
  requests: number;
  concurrency: number;
  requestRate?: number;
  promptTokens: number;
  tokens: number;
  budget?: number[];
  warmUp: number;
  vocabulary: number;
  seed: number;
  eos?: boolean;
  control?: string;
  tokenFile?: string;
  out?: string;
  json?: boolean;
}

/** Engines report their counters every second. */
const SETTLE_MS = 1_500;

function positive(flag: string): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!Number.isFinite(value) || value <= 0) throw new ConfigError(flag, text, "a number above 0");
    return value;
  };
}

/** The one model that a server has, or the one named. Throws EnvironmentError when nobody answers. */
async function modelOf(url: string, named: string | undefined): Promise<string> {
  let models: { data?: { id: string }[] };
  try {
    const response = await fetch(`${url}/v1/models`, { signal: AbortSignal.timeout(10_000) });
    models = (await response.json()) as typeof models;
  } catch (cause) {
    const { code, message } = ((cause as Error).cause ?? cause) as NodeJS.ErrnoException;
    throw new EnvironmentError("url", url, `no OpenAI server answers there (${code ?? message})`, { cause });
  }
  const names = models.data?.map(({ id }) => id) ?? [];
  const model = named ?? names[0];
  if (model !== undefined && (named === undefined || names.includes(named))) return model;
  throw new ConfigError(
    "--model",
    named ?? "missing",
    `one that the server has: ${names.join(", ") || "none"}`,
  );
}

/** The control plane that was named, or the one of this machine where there is one. */
async function controlPlane(flags: Flags): Promise<{ client: ControlClient; state: ApiState } | undefined> {
  const client = new ControlClient(flags.control ?? DEFAULT_URL, readToken(flags.tokenFile));
  try {
    return { client, state: await client.state() };
  } catch (error) {
    if (flags.control === undefined && error instanceof EnvironmentError) return undefined;
    throw error;
  }
}

async function load(given: string, flags: Flags, signal: AbortSignal): Promise<LoadReport> {
  const url = baseUrl(given).replace(/\/v1$/, "");
  const model = await modelOf(url, flags.model);
  const control = await controlPlane(flags);
  const note = (text: string) => void process.stderr.write(`${text}\n`);
  if (control === undefined) note("no control plane was found: whether compression fires is not known");
  const options = (budget: number | undefined, requests: number, seed: number): LoadOptions => ({
    url,
    model,
    requests,
    concurrency: flags.concurrency,
    rate: flags.requestRate,
    promptTokens: flags.promptTokens,
    maxTokens: flags.tokens,
    ignoreEos: !flags.eos,
    budget,
    engine: control?.state.engines[0]?.engine.name ?? "vllm",
    vocabulary: flags.vocabulary,
    seed,
    signal,
  });
  if (flags.warmUp > 0) await drive(options(undefined, flags.warmUp, flags.seed + 1));
  const arms: LoadArm[] = [];
  for (const budget of flags.budget ?? [undefined]) {
    const name = budget === undefined ? "server" : budget === 0 ? "full KV" : `budget ${budget}`;
    const before = control && counted(await control.client.state());
    let last = performance.now();
    const onDone = (done: number, failed: number) => {
      if (performance.now() - last < 2_000) return;
      last = performance.now();
      note(`${name}: ${done} of ${flags.requests}, ${failed} failed`);
    };
    const outcome = await drive({ ...options(budget, flags.requests, flags.seed), onDone });
    if (outcome.samples.length === 0) {
      throw new EnvironmentError("url", url, `every request failed, the first with: ${outcome.failures[0]}`);
    }
    if (control !== undefined) await sleep(SETTLE_MS, undefined, { signal });
    const fired = control && before ? difference(counted(await control.client.state()), before) : null;
    // Of the server's own budget; rules and requests may say otherwise, so only the policy's is known.
    const expected = budget ?? control?.state.policy?.policy.budget ?? null;
    arms.push(armOf(name, expected, outcome, fired));
  }
  const { requests, concurrency, requestRate, promptTokens, tokens, seed, eos } = flags;
  return {
    command: ["triattn", ...process.argv.slice(2)].join(" "),
    url,
    model,
    engines:
      control?.state.engines.map((e) => `${e.engine.name} ${e.engine.version} (${e.engine.runner})`) ?? [],
    settings: {
      requests,
      concurrency,
      requestRate: requestRate ?? null,
      promptTokens,
      tokens,
      seed,
      eos: eos ?? false,
    },
    arms,
  };
}

/** `triattn bench load`: what users of a running server would see. */
export function loadBench(): Command {
  const command = new Command("load")
    .description("Load on a running OpenAI server: throughput, times to the first token and between tokens.")
    .argument("<url>", "address of the server, such as http://127.0.0.1:8000")
    .option("--model <name>", "the model to ask for (default: the server's first)")
    .option("--requests <n>", "requests of each arm", wholeNumber("--requests", 1), 64)
    .option("--concurrency <n>", "most requests at once", wholeNumber("--concurrency", 1), 16)
    .option(
      "--request-rate <n>",
      "requests a second, at random moments (default: as the concurrency lets them)",
      positive("--request-rate"),
    )
    .option(
      "--prompt-tokens <n>",
      "tokens of each prompt, random ones",
      wholeNumber("--prompt-tokens", 1),
      128,
    )
    .option("--tokens <n>", "tokens of each answer", wholeNumber("--tokens", 1), 512)
    .option(
      "--budget <tokens>",
      "an arm in which every request asks for this budget, 0 for full KV; may be given several times (default: as the server is)",
      (text: string, before: number[] | undefined) => [...(before ?? []), wholeNumber("--budget", 0)(text)],
    )
    .option("--warm-up <n>", "requests before anything is measured", wholeNumber("--warm-up", 0), 4)
    .option(
      "--vocabulary <n>",
      "prompt tokens are drawn from below this",
      wholeNumber("--vocabulary", 200),
      10_000,
    )
    .option("--seed <n>", "of prompts and moments", wholeNumber("--seed", 0), 0)
    .option("--eos", "let answers end where the model ends them")
    .option("--control <url>", `the control plane's HTTP API (default: ${DEFAULT_URL}, where one answers)`)
    .option("--token-file <file>", "file with its token (default: the variable TRIATTN_HTTP_TOKEN)")
    .option("--out <file>", "write the report here as JSON, and a plot beside it")
    .option("--json", "print the report as one line of JSON")
    .action(async (url: string, flags: Flags) => {
      const stop = new AbortController();
      let stoppedBy: NodeJS.Signals | undefined;
      const unlisten = onSignals(
        (signal) => {
          stoppedBy = signal;
          stop.abort();
        },
        () => process.exit(1),
      );
      try {
        const report = await load(url, flags, stop.signal);
        if (flags.out !== undefined) await save(flags.out, report, loadPlot(report));
        process.stdout.write(`${flags.json ? JSON.stringify(report) : loadTable(report)}\n`);
      } catch (error) {
        if (stoppedBy === undefined) throw error;
        process.exitCode = signalCode(stoppedBy);
      } finally {
        unlisten();
      }
    });
  return withHelp(command, {
    codes: [
      2,
      [3, "nobody answers, or every request failed"],
      [5, "an arm with a budget evicted nothing; nothing is reported"],
    ],
    examples: [
      "triattn bench load http://127.0.0.1:8000 --requests 64 --concurrency 16",
      "triattn bench load http://127.0.0.1:8000 --budget 0 --budget 1024 --tokens 4096 --out load.json",
    ],
  });
}
