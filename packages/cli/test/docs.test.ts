import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Pin, PolicyDocument, referenceEnvironment } from "@triattn/protocol";
import { expect, test } from "vitest";
import { ExitCode } from "../src/errors.ts";
import { createProgram } from "../src/program.ts";
import { root } from "./helpers.ts";

const text = readFileSync(join(root, "docs", "command-line.md"), "utf8");

test("docs/command-line.md names every flag, exit code and variable", async () => {
  for (const name of ["serve", "doctor", "top", "plan", "demo"]) {
    const command = (await createProgram()).commands.find((one) => one.name() === name);
    const section = text.slice(text.indexOf(`## triattn ${name}`));
    const synopsis = section.slice(0, section.indexOf("```", section.indexOf("```") + 3));
    for (const { long } of command?.options ?? []) expect(synopsis).toContain(`[${long}`);
  }
  for (const name of ["bench", "keys"]) {
    const command = (await createProgram()).commands.find((one) => one.name() === name);
    const section = text.slice(text.indexOf(`## triattn ${name}`));
    for (const sub of command?.commands ?? []) {
      const line = section.slice(section.indexOf(`triattn ${name} ${sub.name()}`));
      expect(section).toContain(`triattn ${name} ${sub.name()}`);
      for (const { long } of sub.options) expect(line, `${name} ${sub.name()}`).toContain(`[${long}`);
    }
  }
  for (const code of Object.values(ExitCode)) expect(text).toMatch(new RegExp(`^\\| ${code} \\|`, "m"));
  for (const { variable } of referenceEnvironment.rows) expect(text).toContain(`\`${variable}\``);
});

test("docs/policies.md names every field of a policy", () => {
  const guide = readFileSync(join(root, "docs", "policies.md"), "utf8");
  for (const field of Object.keys(PolicyDocument.shape).filter((name) => name !== "pin")) {
    expect(guide).toContain(`| \`${field}\` |`);
  }
  for (const field of Object.keys(Pin.shape)) expect(guide).toContain(`| \`pin.${field}\` |`);
});
