import { readFileSync } from "node:fs";
import { ConfigError } from "@triattn/control";
import { type Backend, backendOf } from "./backends.ts";

/** What triattn itself has to know of the engine's flags; all of them pass through untouched. */
export interface EngineFlags {
  /** Where to reach the server from this machine. */
  readonly host: string;
  /** Where it listens: undefined for every address. */
  readonly bind: string | undefined;
  readonly port: number;
  /** A Unix socket instead of host and port. */
  readonly uds: string | undefined;
  readonly tls: boolean;
  readonly blockSize: number | undefined;
  /** Seconds that the engine takes to let its requests finish. */
  readonly shutdownSeconds: number;
}

/** The values of flags, as `--flag value` or `--flag=value`, dashes and underscores alike; the last one counts. */
function values(flags: readonly string[]): Map<string, string> {
  const found = new Map<string, string>();
  for (const [index, flag] of flags.entries()) {
    const [name = "", inline] = flag.split(/=(.*)/s);
    if (!name.startsWith("--")) continue;
    const next = flags[index + 1];
    const value = inline ?? (next !== undefined && !next.startsWith("--") ? next : "");
    found.set(name.slice(2).replaceAll("_", "-"), value);
  }
  return found;
}

/** The engine's `--config FILE` may hold flags too; those of the command line come before them. */
function fromConfig(path: string): Map<string, string> {
  try {
    const lines = readFileSync(path, "utf8").matchAll(
      /^([\w-]+):[ \t]*["']?([^"'#\n]*?)["']?[ \t]*(?:#.*)?$/gm,
    );
    return new Map([...lines].map(([, name = "", value = ""]) => [name.replaceAll("_", "-"), value]));
  } catch {
    // The engine says what is wrong with it.
    return new Map();
  }
}

function whole(name: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < least || value > most) {
    throw new ConfigError(`--${name}`, text, `a whole number from ${least} to ${most}`);
  }
  return value;
}

/** The values of an engine's flags, those of its `--config FILE` included; without the dashes. */
export function engineFlagValues(flags: readonly string[]): ReadonlyMap<string, string> {
  const given = values(flags);
  const config = given.get("config");
  return new Map([...(config ? fromConfig(config) : []), ...given]);
}

/** Throws ConfigError for flags that triattn sets itself, and for values it cannot read. */
export function readEngineFlags(flags: readonly string[], backend: Backend = backendOf("vllm")): EngineFlags {
  const given = values(flags);
  for (const name of ["model", backend.modelFlag.slice(2)]) {
    const model = given.get(name);
    if (model === undefined) continue;
    throw new ConfigError(`--${name}`, model, "name the model before the --: triattn serve MODEL -- FLAGS");
  }
  const all = engineFlagValues(flags);
  const text = (name: string) => all.get(name) || undefined;
  const port = text("port");
  const block = text(backend.blockFlag);
  const bind = text("host") ?? backend.host;
  const everywhere = bind === undefined || bind === "0.0.0.0" || bind === "::";
  const shutdown = Number(text("shutdown-timeout") ?? 0);
  return {
    host: everywhere ? "127.0.0.1" : bind,
    bind,
    port: port === undefined ? backend.port : whole("port", port, 0, 65535),
    uds: text("uds"),
    tls: text("ssl-keyfile") !== undefined,
    blockSize: block === undefined ? undefined : whole(backend.blockFlag, block, 1, 65536),
    shutdownSeconds: Number.isFinite(shutdown) ? shutdown : 0,
  };
}

/** The base URL of the engine's server; undefined on a Unix socket. */
export function urlOf(flags: EngineFlags): string | undefined {
  if (flags.uds !== undefined) return undefined;
  const host = flags.host.includes(":") ? `[${flags.host}]` : flags.host;
  return `${flags.tls ? "https" : "http"}://${host}:${flags.port}`;
}
