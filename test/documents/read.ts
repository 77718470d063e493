import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";

export const root = join(import.meta.dirname, "..", "..");

/** How a test takes a block of commands, as the line before it says: `<!-- test: run -->`, which readers do not see. */
export type Mode = "run" | "dry run" | "fakes" | "not run";

export interface Block {
  /** `docs/policies.md:12`. */
  readonly where: string;
  /** Undefined where the block does not say, which is a mistake. */
  readonly mode: Mode | undefined;
  /** Why it is not run. */
  readonly reason: string | undefined;
  readonly script: string;
}

const SHELL = /^```(?:bash|sh|shell|console)\b.*$/;
const ANNOTATION = /^<!-- test: (run|dry run|fakes|not run(?:: (.+))?) -->$/;

/** Every document that is in the repository, by its path. */
export function documents(): string[] {
  const listed = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard", "*.md"], {
    cwd: root,
    encoding: "utf8",
  });
  return listed.split("\n").filter((path) => path !== "" && !path.startsWith("notes/"));
}

export const read = (path: string): string => readFileSync(join(root, path), "utf8");

/** The blocks of shell commands of a document. */
export function blocks(path: string, text: string): Block[] {
  const lines = text.split("\n");
  return lines.flatMap((line, at): Block[] => {
    if (!SHELL.test(line)) return [];
    const end = lines.indexOf("```", at);
    const script = lines.slice(at + 1, end).join("\n");
    const [, said, reason] = ANNOTATION.exec(lines[at - 1] ?? "") ?? [];
    const mode = said?.startsWith("not run") ? "not run" : (said as Mode | undefined);
    return [{ where: `${path}:${at + 1}`, mode, reason, script }];
  });
}

/** A block's commands, continued lines joined, comments taken off. */
export function commands(script: string): string[] {
  return script
    .replaceAll(/\\\n\s*/g, "")
    .split("\n")
    .map((line) => line.replace(/(^|\s)#.*$/, "").trim())
    .filter((line) => line !== "");
}

/** Where a document's links to other documents and their headings lead. */
export function links(text: string): string[] {
  const prose = text.replaceAll(/^```.*?^```$/gms, "").replaceAll(/`[^`\n]*`/g, "");
  return [...prose.matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, target = ""]) => target)
    .filter((t) => !/^[a-z]+:/.test(t));
}

/** The anchors of a document's headings, as GitHub makes them. */
export function anchors(text: string): Set<string> {
  const prose = text.replaceAll(/^```.*?^```$/gms, "");
  return new Set(
    [...prose.matchAll(/^#+ (.+)$/gm)].map(([, title = ""]) =>
      title
        .toLowerCase()
        .replaceAll(/[^\p{L}\p{N} _-]/gu, "")
        .replaceAll(" ", "-"),
    ),
  );
}
