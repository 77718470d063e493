import { FieldError } from "@triattn/control";
import { exitCodeOf } from "./errors.ts";
import { jsonOutput, textOutput } from "./serve/output.ts";

/** Says what went wrong, for people or for programs; the exit code. */
export function report(error: unknown, json: boolean): number {
  if (json) jsonOutput.error(error);
  // A program gets the fields; of anything else the log keeps the text.
  if (!json || !(error instanceof FieldError)) textOutput.error(error);
  return exitCodeOf(error);
}
