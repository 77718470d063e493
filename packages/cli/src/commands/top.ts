import { readFileSync } from "node:fs";
import { ConfigError } from "@triattn/control";
import { Command } from "commander";
import { ControlClient, DEFAULT_URL } from "../http/client.ts";
import { createModel, Intake } from "../top/model.ts";
import { top } from "../top/run.ts";
import { COLOUR, PLAIN, render } from "../top/view.ts";
import { withHelp } from "./help.ts";

interface Flags {
  tokenFile?: string;
  once?: boolean;
  json?: boolean;
}

const WAIT_MS = 2_500;

/** The control plane's token: of a file, or TRIATTN_HTTP_TOKEN. Throws ConfigError. */
export function readToken(
  file: string | undefined,
  environment: NodeJS.ProcessEnv = process.env,
): string | undefined {
  if (file === undefined) return environment.TRIATTN_HTTP_TOKEN?.trim() || undefined;
  try {
    return readFileSync(file, "utf8").trim();
  } catch (error) {
    throw new ConfigError(
      "--token-file",
      file,
      `a file that can be read (${(error as NodeJS.ErrnoException).code})`,
    );
  }
}

const print = (text: string) => process.stdout.write(`${text}\n`);

async function once(client: ControlClient, json: boolean): Promise<void> {
  const found = await client.once(WAIT_MS);
  if (json) return void print(JSON.stringify(found));
  const model = createModel(client.url);
  const intake = new Intake(model);
  intake.take({ type: "state", data: found.state }, 0);
  for (const data of found.requests) intake.take({ type: "requests", data }, 0);
  const columns = process.stdout.columns || 80;
  const rows = Math.max(
    24,
    found.requests.reduce((most, { requests }) => Math.max(most, requests.length), 0) + 14,
  );
  const lines = render(model, { columns, rows }, PLAIN).slice(0, -1);
  print(
    lines
      .map((line) => line.trimEnd())
      .filter((line, i, all) => line !== "" || (all[i + 1] ?? "") !== "")
      .join("\n")
      .trimEnd(),
  );
}

/** Lines of JSON as the control plane says them, until it or the reader ends. */
async function follow(client: ControlClient): Promise<void> {
  const stop = new AbortController();
  process.stdout.once("error", () => stop.abort());
  try {
    for await (const message of client.stream(stop.signal)) print(JSON.stringify(message));
  } catch (error) {
    if (!stop.signal.aborted) throw error;
  }
}

/** `triattn top`: what engines and requests do, live. */
export function topCommand(): Command {
  const command = new Command("top")
    .description("Engines and requests of a control plane, live in the terminal; keys change the budget.")
    .argument("[url]", `address of the control plane's HTTP API (default: ${DEFAULT_URL})`)
    .option(
      "--token-file <file>",
      "file with the control plane's token (default: the variable TRIATTN_HTTP_TOKEN)",
    )
    .option("--once", "print what there is, and end")
    .option("--json", "lines of JSON as the control plane says them; with --once: one line")
    .action(async (url: string | undefined, flags: Flags) => {
      const client = new ControlClient(url ?? DEFAULT_URL, readToken(flags.tokenFile));
      if (flags.once) return once(client, flags.json ?? false);
      if (flags.json) return follow(client);
      if (!process.stdin.isTTY || !process.stdout.isTTY) {
        throw new ConfigError("terminal", "none", "run it in a terminal, or use --once or --json");
      }
      // What is wrong with the address is said before the screen is taken.
      await client.state();
      const plain = Boolean(process.env.NO_COLOR) || process.env.TERM === "dumb";
      process.exitCode = await top(client, plain ? PLAIN : COLOUR);
    });
  return withHelp(command, {
    codes: [2, [3, "nobody answers at the address"]],
    examples: ["triattn top", "triattn top http://127.0.0.1:9470 --once --json"],
  });
}
