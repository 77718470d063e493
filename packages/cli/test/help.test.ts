import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Command } from "commander";
import { expect, test } from "vitest";
import { commands } from "../src/commands/index.ts";
import { createProgram } from "../src/program.ts";
import { root } from "./helpers.ts";

const program = await createProgram();
const walk = (command: Command): Command[] => [command, ...command.commands.flatMap(walk)];
const full = (command: Command): string =>
  command.parent === null ? command.name() : `${full(command.parent)} ${command.name()}`;

/** A command's help as it is printed, `addHelpText` included. */
function help(command: Command): string {
  let text = "";
  const write = (part: string) => {
    text += part;
  };
  command.configureOutput({ writeOut: write, writeErr: write });
  command.outputHelp();
  return text;
}

test.each(walk(program).map((command) => [full(command), command] as const))("%s --help", (name, command) => {
  expect(command.description()).toMatch(/^[A-Z].*\.$/s);
  for (const { flags, description } of command.options) expect(description, flags).not.toBe("");
  for (const argument of command.registeredArguments) {
    expect(argument.description, argument.name()).not.toBe("");
  }
  const text = help(command);
  expect(text).toMatch(/^Exit codes:\n {2}0 .*\n {2}1 +anything else$/ms);
  expect(text).toMatch(new RegExp(`^Examples?:\n  ${name}`, "m"));
});

test("only the file of the command asked for is loaded", async () => {
  const { commands: known } = await createProgram(["stats"]);
  expect(known.map((command) => command.name())).toEqual(commands.map(({ name }) => name));
  for (const command of known)
    expect(command.options.length > 0 || command.commands.length > 0).toBe(command.name() === "stats");
  for (const { summary } of commands) expect(summary).toMatch(/^[a-z].*[^.]$/);
});

test("`triattn --version` loads nothing but Node's own; the program itself only commander", () => {
  const source = join(root, "packages", "cli", "src");
  const packages: string[] = [];
  const seen = new Set<string>();
  const visit = (file: string): void => {
    if (seen.has(file)) return;
    seen.add(file);
    const text = readFileSync(file, "utf8");
    // Types vanish, and `import()` waits until it is reached.
    for (const [, from = ""] of text.matchAll(/^(?:import|export) (?!type )[^;]*?from "([^"]+)";/gms)) {
      if (from.startsWith(".")) visit(join(dirname(file), from));
      else if (!from.startsWith("node:")) packages.push(from);
    }
  };
  visit(join(source, "bin.ts"));
  expect(packages).toEqual([]);
  visit(join(source, "program.ts"));
  expect(packages).toEqual(["commander"]);
});
