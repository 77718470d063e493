import { EndpointError, FieldError } from "@triattn/control";
import { ExitCode } from "./exit-codes.ts";

export { ExitCode };

/** Something of this machine that serving needs: which, what was found, what to do about it. */
export class EnvironmentError extends FieldError {}

/** The engine ended without being asked to. */
export class EngineDied extends Error {
  override name = "EngineDied";
  /** Exit code, or null when a signal ended it. */
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** The last lines it wrote. */
  readonly log: readonly string[];

  constructor(code: number | null, signal: NodeJS.Signals | null, log: readonly string[]) {
    super(`the engine died (${signal ?? `exit code ${code}`})`);
    this.code = code;
    this.signal = signal;
    this.log = log;
  }
}

/** Compression was asked for and did not happen. */
export class NotCompressed extends Error {
  override name = "NotCompressed";
}

export function exitCodeOf(error: unknown): number {
  if (error instanceof EngineDied) return ExitCode.engineDied;
  if (error instanceof NotCompressed) return ExitCode.notCompressed;
  if (error instanceof EnvironmentError || error instanceof EndpointError) return ExitCode.environment;
  if (error instanceof FieldError) return ExitCode.usage;
  return ExitCode.unexpected;
}

const DISK = new Map([
  ["ENOSPC", "the disk is full: free some space"],
  ["EDQUOT", "the disk quota is used up: free some space"],
  ["EROFS", "the file system is read-only: name another directory by TMPDIR"],
  ["EACCES", "it cannot be written: name another directory by TMPDIR"],
  ["ENOENT", "it is not there: make it, or name another directory by TMPDIR"],
  ["ENOTDIR", "it is not a directory: name another by TMPDIR"],
]);

/** Runs `work`; what the disk refuses becomes an EnvironmentError for `path`. */
export async function onDisk<T>(path: string, work: () => T | Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const remedy = DISK.get(String((error as NodeJS.ErrnoException).code));
    if (remedy === undefined) throw error;
    throw new EnvironmentError("disk", path, remedy, { cause: error });
  }
}
