import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, test } from "vitest";
import { createProgram } from "../packages/cli/src/program.ts";
import { anchors, blocks, commands, documents, links, read, root } from "./documents/read.ts";

const program = await createProgram();
type Command = typeof program;
const scripts = new Set(Object.keys(JSON.parse(readFileSync(join(root, "package.json"), "utf8")).scripts));

test("each block of commands says how it is tested, or why it is not run", () => {
  expect(blocks("x.md", "a\n```bash\ntriattn top\n```\n")).toMatchObject([
    { where: "x.md:2", mode: undefined },
  ]);
  expect(blocks("x.md", "<!-- test: not run -->\n```bash\nls\n```\n")).toMatchObject([
    { mode: "not run", reason: undefined },
  ]);
  for (const path of documents()) {
    for (const { where, mode, reason } of blocks(path, read(path))) {
      expect(
        mode,
        `${where}: put "<!-- test: run -->" before the block; or "dry run", "fakes", "not run: REASON"`,
      ).toBeDefined();
      if (mode === "not run") expect(reason, `${where}: why is it not run?`).toBeDefined();
    }
  }
});

/** What is wrong with a command line of triattn; undefined when nothing is. */
function mistake(line: string): string | undefined {
  const [, pnpm] = /^npx -y pnpm@12 (\S+)/.exec(line) ?? [];
  if (pnpm !== undefined && pnpm !== "triattn") {
    return pnpm === "install" || scripts.has(pnpm) ? undefined : `no script ${pnpm}`;
  }
  const match = /^(?:npx -y pnpm@12 )?triattn (.*)$/.exec(line);
  if (match === null) return undefined;
  const words = (match[1] ?? "").replace(/\s--(\s.*)?$/, "").split(/\s+/);
  let command: Command = program;
  for (const word of words) {
    const next: Command | undefined = command.commands.find((one) => one.name() === word);
    if (next === undefined) break;
    command = next;
  }
  if (command === program && !words[0]?.startsWith("-")) return `no command ${words[0]}`;
  const known = [...command.options.map(({ long }) => long), "--help", "--version"];
  const flags = words.filter((word) => word.startsWith("--")).map((word) => word.split("=")[0] ?? "");
  const unknown = flags.find((flag) => !known.includes(flag));
  return unknown === undefined ? undefined : `${command.name()} has no ${unknown}`;
}

test("each command of the documents exists, with each of its flags", () => {
  expect(mistake("triattn serv m")).toBe("no command serv");
  expect(mistake("npx -y pnpm@12 triattn serve m --budgets 3 -- --anything")).toBe("serve has no --budgets");
  expect(mistake("npx -y pnpm@12 nothing")).toBe("no script nothing");
  for (const path of documents()) {
    for (const { where, script } of blocks(path, read(path))) {
      for (const line of commands(script)) expect(mistake(line), `${where}: ${line}`).toBeUndefined();
    }
  }
});

test("links between documents lead somewhere", () => {
  expect(links("[a](b.md#c) `[d](e)` [f](https://g)")).toEqual(["b.md#c"]);
  expect(anchors("# A b\n## `c` — d's\n")).toEqual(new Set(["a-b", "c--ds"]));
  for (const path of documents()) {
    for (const target of links(read(path))) {
      const [file = "", anchor] = target.split("#");
      const full = file === "" ? join(root, path) : join(root, dirname(path), file);
      expect(existsSync(full), `${path}: ${target}`).toBe(true);
      if (anchor !== undefined && full.endsWith(".md")) {
        expect([...anchors(readFileSync(full, "utf8"))], `${path}: ${target}`).toContain(anchor);
      }
    }
  }
});
