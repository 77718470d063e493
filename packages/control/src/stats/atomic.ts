import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { StatisticsError } from "./errors.ts";

/**
 * Writes a file whole or not at all: to a temporary file beside it, synchronized, verified, then renamed.
 * `verify` gets the temporary path and throws to keep the file from appearing.
 */
export function writeAtomically(path: string, data: Uint8Array, verify?: (path: string) => void): void {
  const temporary = join(dirname(path), `.${basename(path)}.${process.pid}.part`);
  let fd: number | null = null;
  try {
    fd = openSync(temporary, "w", 0o644);
    for (let done = 0; done < data.length; ) done += writeSync(fd, data, done);
    fsyncSync(fd);
    closeSync(fd);
    fd = null;
    verify?.(temporary);
    renameSync(temporary, path);
  } catch (error) {
    if (fd !== null) closeSync(fd);
    rmSync(temporary, { force: true });
    const code = (error as NodeJS.ErrnoException).code;
    if (code === undefined) throw error;
    const remedy =
      code === "ENOSPC" ? "no space left on the device; free some" : `cannot be written (${code})`;
    throw new StatisticsError("out", path, remedy, { cause: error });
  }
}
