import { spawn } from "node:child_process";
import { statfsSync } from "node:fs";
import { tools } from "./paths.ts";

/** Something set-up needs and cannot make by itself: what is wrong, and what to do about it. */
export class SetupError extends Error {
  readonly remedy: string;

  constructor(message: string, remedy: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "SetupError";
    this.remedy = remedy;
  }
}

/** Progress goes to stderr, so that stdout stays the commands' own. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

const PROGRESS_MS = 10_000;

/** Bytes in use where `directory` lies. */
function used(directory: string): number {
  const { blocks, bfree, bsize } = statfsSync(directory);
  return (blocks - bfree) * bsize;
}

/** Runs one step of the set-up, saying that it begins, how it goes on, and how long it took. */
export async function step<T>(title: string, work: () => Promise<T>): Promise<T> {
  const started = performance.now();
  const before = used(tools);
  const seconds = () => ((performance.now() - started) / 1000).toFixed(0);
  say(`• ${title} …`);
  const progress = setInterval(() => {
    const gigabytes = Math.max(0, (used(tools) - before) / 1e9).toFixed(1);
    say(`  ${seconds()} s, ${gigabytes} GB written`);
  }, PROGRESS_MS);
  try {
    const result = await work();
    say(`  done in ${seconds()} s`);
    return result;
  } finally {
    clearInterval(progress);
  }
}

export interface Finished {
  readonly code: number;
  readonly output: string;
}

/** Runs a program to its end. Throws only when it cannot start. */
export function execute(
  command: string,
  args: readonly string[],
  options: { readonly env?: NodeJS.ProcessEnv; readonly cwd?: string } = {},
): Promise<Finished> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      cwd: options.cwd,
      env: options.env ?? process.env,
      stdio: ["ignore", "pipe", "pipe"],
    });
    let output = "";
    const take = (chunk: Buffer) => {
      output = (output + chunk.toString()).slice(-20_000);
    };
    child.stdout.on("data", take);
    child.stderr.on("data", take);
    child.once("error", reject);
    child.once("close", (code) => resolve({ code: code ?? 1, output }));
  });
}

const NETWORK =
  /(dns error|name resolution|resolve host|connection (refused|reset|error|timed out)|network is unreachable|could not fetch|error sending request|NewConnectionError|ConnectTimeout|ReadTimeout|operation timed out|tunnel connection failed|from versions: none)/i;
const SPACE = /(no space left on device|disk quota exceeded|ENOSPC|os error 28)/i;

/** The error to show for a program that failed, with a remedy where its output gives the cause away. */
export function failure(what: string, { code, output }: Finished): SetupError {
  const last = output.trim().split("\n").slice(-8).join("\n");
  const message = `${what} failed (exit code ${code}):\n${last}`;
  if (SPACE.test(output))
    return new SetupError(message, "the disk is full: free some space and run it again");
  if (NETWORK.test(output)) {
    return new SetupError(
      message,
      "the Python package index cannot be reached: see to the network, then run it again",
    );
  }
  return new SetupError(message, "run it again; if it stays, remove .tools and let it be made anew");
}
