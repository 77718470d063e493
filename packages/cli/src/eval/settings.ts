import { existsSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { ConfigError } from "@triattn/control";
import { EnvironmentError } from "../errors.ts";
import { cloneRoot, pythonRoot } from "../package.ts";

/** The text that comes along: what calibration uses as well. */
const OWN_TEXT = join(pythonRoot, "triattn", "calibrate", "corpus.txt");

/** Where the model of `examples/tiny-reasoner` is, for the name `tiny`. Throws EnvironmentError. */
export function modelPath(name: string): string {
  if (name !== "tiny") return name;
  const places = [
    process.env.TRIATTN_TINY,
    ...(cloneRoot === undefined ? [] : [join(cloneRoot, "examples", "tiny-reasoner", "model")]),
    join(pythonRoot, "..", "tiny-reasoner"),
  ].filter((path) => path !== undefined);
  const found = places.find((path) => existsSync(join(path, "config.json")));
  if (found !== undefined) return found;
  throw new EnvironmentError(
    "model",
    "tiny",
    "is not there yet: train it (examples/tiny-reasoner/README.md), or name its directory by TRIATTN_TINY",
  );
}

/** A text to score or to hide needles in. Throws ConfigError. */
export function readText(path: string | undefined): { text: string; source: string } {
  const file = path ?? OWN_TEXT;
  try {
    return { text: readFileSync(file, "utf8"), source: basename(file) };
  } catch (error) {
    throw new ConfigError("--text", file, `cannot be read (${(error as NodeJS.ErrnoException).code})`);
  }
}

/** A list of numbers from a flag, each made by `read`. */
export function list<T>(text: string, read: (part: string) => T): T[] {
  return text
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "")
    .map(read);
}
