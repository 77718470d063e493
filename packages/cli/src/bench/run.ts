import { spawn } from "node:child_process";
import { delimiter } from "node:path";
import { createInterface } from "node:readline";
import { EngineDied } from "../errors.ts";
import { pluginDirectory } from "../package.ts";

const TAIL = 30;

/** An environment in which Python finds the modules of triattn. */
export async function moduleEnvironment(environment: NodeJS.ProcessEnv): Promise<NodeJS.ProcessEnv> {
  const path = [await pluginDirectory(), environment.PYTHONPATH].filter(Boolean).join(delimiter);
  return { ...environment, PYTHONPATH: path, PYTHONUNBUFFERED: "1" };
}

/**
 * Runs a Python module that prints its result as the last line of standard output; the parsed result.
 * Its log goes to `onLine`. Throws EngineDied, with the log's end, when it fails.
 */
export async function runModule(
  python: string,
  module: string,
  args: readonly string[],
  environment: NodeJS.ProcessEnv,
  onLine: (line: string) => void,
  abort?: AbortSignal,
): Promise<unknown> {
  const child = spawn(python, ["-m", module, ...args], {
    env: environment,
    stdio: ["ignore", "pipe", "pipe"],
    ...(abort === undefined ? {} : { signal: abort }),
  });
  const log: string[] = [];
  let last = "";
  createInterface({ input: child.stdout }).on("line", (line) => {
    last = line;
  });
  createInterface({ input: child.stderr }).on("line", (line) => {
    onLine(line);
    log.push(line);
    if (log.length > TAIL) log.shift();
  });
  const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((done, fail) => {
    child.once("error", fail);
    child.once("close", (...ended) => done(ended));
  });
  if (code !== 0) throw new EngineDied(code, signal, log);
  try {
    return JSON.parse(last);
  } catch {
    throw new EngineDied(code, signal, [...log, `not a result: ${last.slice(0, 200)}`]);
  }
}
