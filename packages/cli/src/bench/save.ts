import { renameSync, writeFileSync } from "node:fs";
import { onDisk } from "../errors.ts";

/** Writes a report and its plot beside it, each whole or not at all. */
export async function save(path: string, report: unknown, svg: string): Promise<void> {
  const files = {
    [path]: `${JSON.stringify(report, null, 2)}\n`,
    [`${path.replace(/\.json$/, "")}.svg`]: svg,
  };
  for (const [file, text] of Object.entries(files)) {
    await onDisk(file, () => {
      writeFileSync(`${file}.part`, text);
      renameSync(`${file}.part`, file);
    });
  }
}
