import type { Command } from "commander";

const MEANING = {
  2: "a flag or a file cannot be used",
  3: "this machine lacks something: Python, the engine, a port, space on a disk",
  4: "the engine died",
  5: "nothing was compressed",
} as const;

export interface HelpEnd {
  /** What 0 means, where it is more than "done". */
  readonly ok?: string;
  /** Exit codes that the command uses besides 0, 1 and those of signals; another meaning replaces the usual one. */
  readonly codes: readonly (keyof typeof MEANING | readonly [number, string])[];
  readonly examples: readonly string[];
}

/** Ends a command's help with its exit codes and examples, as every command's does. */
export function withHelp(command: Command, { ok = "done", codes, examples }: HelpEnd): Command {
  const listed: (readonly [number | string, string])[] = [
    [0, ok],
    ...codes.map((code) => (typeof code === "number" ? ([code, MEANING[code]] as const) : code)),
    ["129, 130, 143", "ended by SIGHUP, SIGINT, SIGTERM"],
    [1, "anything else"],
  ];
  const rows = listed.map(([code, meaning]) => `  ${String(code).padEnd(15)} ${meaning}`);
  const title = examples.length > 1 ? "Examples" : "Example";
  return command.addHelpText(
    "after",
    ["", "Exit codes:", ...rows, "", `${title}:`, ...examples.map((example) => `  ${example}`)].join("\n"),
  );
}
