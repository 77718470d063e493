import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";

/**
 * Puts this process and a browser of its own first among all that want the processors, so that what is measured is the
 * page and not its neighbours. Linux schedules sessions as groups (autogroup), and a browser is one of its own. Needs
 * root. Throws where it cannot be done.
 */
export function putFirst(userDataDirectory?: string): void {
  const group = "/proc/self/autogroup";
  if (!existsSync(group)) throw new Error("--first needs Linux with autogroup scheduling; leave it out");
  writeFileSync(group, "-20");
  if (userDataDirectory === undefined) return;
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      const line = readFileSync(`/proc/${pid}/cmdline`, "utf8");
      if (line.includes(userDataDirectory)) writeFileSync(`/proc/${pid}/autogroup`, "-20");
    } catch {
      // It has ended meanwhile.
    }
  }
}
