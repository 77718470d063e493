import { readFileSync } from "node:fs";
import { join } from "node:path";

/** This package's version: of the nearest package.json above, whether it runs from source or bundled. */
export const version: string = (() => {
  for (const up of ["..", "../..", "../../.."]) {
    try {
      return (
        JSON.parse(readFileSync(join(import.meta.dirname, up, "package.json"), "utf8")) as { version: string }
      ).version;
    } catch {
      // One further up.
    }
  }
  return "unknown";
})();
