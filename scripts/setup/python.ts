import { statfsSync } from "node:fs";
import { execute, SetupError } from "./steps.ts";

const OLDEST = [3, 11] as const;
const CANDIDATES = ["python3", "python3.13", "python3.12", "python3.11", "python"];

/** Full path of the first Python ≥ 3.11 on the path. Throws SetupError. */
export async function findPython(): Promise<string> {
  const seen: string[] = [];
  for (const name of CANDIDATES) {
    const script = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)";
    const result = await execute(name, ["-c", script]).catch(() => undefined);
    if (result?.code !== 0) continue;
    const [version = "", ...path] = result.output.trim().split(" ");
    const [major = 0, minor = 0] = version.split(".").map(Number);
    if (major > OLDEST[0] || (major === OLDEST[0] && minor >= OLDEST[1])) return path.join(" ");
    seen.push(`${name} is ${version}`);
  }
  throw new SetupError(
    `no Python ${OLDEST.join(".")} or newer on the path${seen.length > 0 ? ` (${seen.join(", ")})` : ""}`,
    "install python3 ≥ 3.11 with pip (Debian, Ubuntu: apt install python3 python3-pip)",
  );
}

/** Throws SetupError where this Python has no pip. */
export async function requirePip(python: string): Promise<void> {
  const { code } = await execute(python, ["-m", "pip", "--version"]);
  if (code !== 0) {
    throw new SetupError(
      `${python} has no pip`,
      "install it (Debian, Ubuntu: apt install python3-pip; elsewhere: python3 -m ensurepip)",
    );
  }
}

/** Throws SetupError when fewer than `gigabytes` are free where `directory` lies. */
export function requireSpace(directory: string, gigabytes: number, what: string): void {
  const { bavail, bsize } = statfsSync(directory);
  const free = (bavail * bsize) / 1e9;
  if (free < gigabytes) {
    throw new SetupError(
      `${free.toFixed(1)} GB are free at ${directory}, ${what} needs ${gigabytes} GB`,
      "free some space, then run it again",
    );
  }
}
