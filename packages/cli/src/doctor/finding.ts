import { FieldError } from "@triattn/control";

/** What a check found out. Only an `error` keeps triattn from serving. */
export interface Finding {
  readonly level: "ok" | "warn" | "error";
  /** What was looked at: `node`, `engine`, `port`, … */
  readonly check: string;
  readonly found: string;
  /** What to do about it; not where it is well. */
  readonly fix?: string;
}

export const ok = (check: string, found: string): Finding => ({ level: "ok", check, found });
export const warn = (check: string, found: string, fix: string): Finding => ({
  level: "warn",
  check,
  found,
  fix,
});
export const bad = (check: string, found: string, fix: string): Finding => ({
  level: "error",
  check,
  found,
  fix,
});

/** What an error of this machine or of a setting says, as a finding. */
export function fromError(check: string, error: unknown, level: "warn" | "error" = "error"): Finding {
  if (error instanceof FieldError) {
    const value = typeof error.value === "string" ? error.value : JSON.stringify(error.value);
    return { level, check, found: `${error.field} = ${value}`, fix: error.remedy };
  }
  const message = error instanceof Error ? error.message : String(error);
  return { level, check, found: message, fix: "an error that nobody foresaw; report it" };
}

/** Runs a check; what it throws is what it found. */
export async function checked(
  check: string,
  work: () => readonly Finding[] | Finding | Promise<readonly Finding[] | Finding>,
): Promise<readonly Finding[]> {
  try {
    const found = await work();
    return Array.isArray(found) ? found : [found as Finding];
  } catch (error) {
    return [fromError(check, error)];
  }
}
