import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";

function locate(start: string): { directory: string; version: string } {
  for (let at = start; ; at = dirname(at)) {
    const file = join(at, "package.json");
    if (existsSync(file)) {
      const { name, version } = JSON.parse(readFileSync(file, "utf8")) as { name?: string; version?: string };
      if (name === "triattn" && version !== undefined) return { directory: at, version };
    }
    if (dirname(at) === at) throw new Error(`package.json of triattn not found above ${start}`);
  }
}

const own = locate(import.meta.dirname);

/** The root of the npm package that this runs from. */
export const packageDirectory = own.directory;

/** This package's version; the Python package's is the same. */
export const version = own.version;
