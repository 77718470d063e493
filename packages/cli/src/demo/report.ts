import type { PolicyDocument } from "@triattn/protocol";
import type { Arm, ArmResult } from "./arm.ts";

/** The demo's outcome: its last line with `--json`. */
export interface DemoReport {
  readonly full: ArmResult;
  readonly compressed: ArmResult;
  readonly engine: Arm["engine"];
  readonly policy: PolicyDocument;
}

const ROWS: readonly (readonly [string, (result: ArmResult) => number])[] = [
  ["requests", (r) => r.requests],
  ["tokens generated", (r) => r.tokensGenerated],
  ["tok/s", (r) => r.tokensPerSecond],
  ["peak resident KV tokens", (r) => r.peakResidentTokens],
  ["peak blocks", (r) => r.peakBlocks],
  ["preemptions", (r) => r.preemptions],
  ["rounds", (r) => r.rounds],
  ["tokens evicted", (r) => r.tokensEvicted],
  ["blocks reclaimed", (r) => r.blocksReclaimed],
];

const ANSWER_CHARACTERS = 200;

/** The two arms side by side, and the start of an answer of each. */
export function table(full: Arm, compressed: Arm, policy: PolicyDocument): string {
  const head = ["", "full KV", `${policy.name}, budget ${policy.budget}`];
  const rows = ROWS.map(([name, of]) => [name, String(of(full.result)), String(of(compressed.result))]);
  const all = [head, ...rows];
  const widths = [0, 1, 2].map((column) => Math.max(...all.map((row) => row[column]?.length ?? 0)));
  const line = ([name = "", ...cells]: string[]) => {
    const right = cells.map((cell, i) => cell.padStart(widths[i + 1] ?? 0));
    return [name.padEnd(widths[0] ?? 0), ...right].join("   ");
  };
  const start = (text: string) => text.replaceAll(/\s+/g, " ").trim().slice(0, ANSWER_CHARACTERS);
  const { name, version, runner } = full.engine;
  return [
    `${name} ${version}, model runner ${runner}, a cache of ${full.cacheBlocks} blocks`,
    "",
    line(head),
    line(widths.map((width) => "─".repeat(width))),
    ...rows.map(line),
    "",
    `The first answer, full KV: ${start(full.answer)} …`,
    "",
    `The first answer, ${policy.name}: ${start(compressed.answer)} …`,
  ].join("\n");
}
