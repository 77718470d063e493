import {
  ConfigError,
  type CurveOptions,
  defaultKeyDirectory,
  engineKeyVariables,
  readEngineKeys,
  readKeyDirectory,
} from "@triattn/control";

export interface LinkOptions {
  /** Where the control plane listens for engines: `tcp://host:port` with keys, or `ipc:///path`. Default: a socket of its own. */
  readonly listen?: string | undefined;
  /** Directory of `triattn keys`, for tcp. Default: that of `triattn keys create`. */
  readonly keys?: string | undefined;
}

/** How engines reach the control plane, where that is not a socket of its own. */
export interface LinkPlan {
  readonly endpoint: string;
  readonly curve?: CurveOptions;
  /** For the engine's environment; they hold its secret key and are never shown. */
  readonly secrets: Readonly<Record<string, string>>;
}

/** Reads the keys that an address needs. Throws ConfigError. */
export function readLink(
  { listen, keys }: LinkOptions,
  environment: NodeJS.ProcessEnv,
): LinkPlan | undefined {
  if (listen === undefined) {
    if (keys === undefined) return undefined;
    throw new ConfigError(
      "--keys",
      keys,
      "give --listen tcp://HOST:PORT, too: a socket of its own needs no keys",
    );
  }
  if (!listen.startsWith("tcp://")) return { endpoint: listen, secrets: {} };
  const directory = keys ?? defaultKeyDirectory(environment);
  const { server, allowed } = readKeyDirectory(directory);
  const [first] = allowed;
  if (first === undefined)
    throw new ConfigError("--keys", directory, "no engine may connect: triattn keys add NAME");
  return {
    endpoint: listen,
    curve: { server, engines: allowed.map(({ publicKey }) => publicKey) },
    secrets: engineKeyVariables(server, readEngineKeys(directory, first.name)),
  };
}

/** Where the engine on this machine finds a control plane that listens at `endpoint`. */
export function reachable(endpoint: string): string {
  return endpoint
    .replace(/^tcp:\/\/(0\.0\.0\.0|\*):/, "tcp://127.0.0.1:")
    .replace(/^tcp:\/\/\[::\]:/, "tcp://[::1]:");
}
