import { type Logger, pino } from "pino";

export const LOG_LEVELS = ["debug", "info", "warn", "error", "silent"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export interface LogOptions {
  /** Default: warn. */
  readonly level?: LogLevel | undefined;
  /** One JSON object a line, as pino writes it. Default: a line for people. */
  readonly json?: boolean | undefined;
}

const HIDDEN = new Set(["level", "time", "pid", "hostname", "name", "msg"]);

/** A line of pino's for people: `triattn: warn: an engine refused a policy (engineId=…, revision=2)`. */
export function readable(line: string): string {
  const entry = JSON.parse(line) as Record<string, unknown>;
  const level = pino.levels.labels[Number(entry.level)] ?? "log";
  const shown = Object.entries(entry).filter(([key]) => !HIDDEN.has(key));
  const text = ([key, value]: [string, unknown]) =>
    `${key}=${typeof value === "string" ? value : ((value as Error | null)?.message ?? JSON.stringify(value))}`;
  const details = shown.length === 0 ? "" : ` (${shown.map(text).join(", ")})`;
  return `triattn: ${level}: ${String(entry.msg)}${details}\n`;
}

/** What the control plane has to say, on stderr. */
export function createLogger({ level = "warn", json = false }: LogOptions = {}): Logger {
  const options = { name: "triattn", level };
  if (json) return pino(options, pino.destination(2));
  return pino(options, { write: (line: string) => void process.stderr.write(readable(line)) });
}
