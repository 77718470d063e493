import {
  closeSync,
  fsyncSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { z } from "zod";
import { type CurveKeys, type CurveOptions, createCurveKeys } from "./curve.ts";
import { ConfigError } from "./errors.ts";

/**
 * CURVE keys in a directory of mode 0700: `server.json`, `engines/NAME.json`, each a key pair of mode 0600, and
 * `engines.allow` with the public keys that may connect, one a line: `KEY NAME`.
 */
export interface KeyDirectory {
  readonly directory: string;
  readonly server: CurveKeys;
  readonly allowed: readonly AllowedEngine[];
}

export interface AllowedEngine {
  readonly name: string;
  readonly publicKey: string;
}

const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;
const KEY = /^[0-9a-zA-Z.\-:+=^!/*?&<>()[\]{}@%$#]{40}$/;
const KeyFile = z.strictObject({ publicKey: z.string().regex(KEY), secretKey: z.string().regex(KEY) });

/** Where keys lie unless told otherwise: `$XDG_CONFIG_HOME/triattn/keys`. */
export function defaultKeyDirectory(environment: NodeJS.ProcessEnv = process.env): string {
  return join(environment.XDG_CONFIG_HOME || join(homedir(), ".config"), "triattn", "keys");
}

/** Makes the control plane's key and that of one engine. Throws ConfigError when there are keys already. */
export function createKeyDirectory(directory: string, engine: string): KeyDirectory {
  checkName(engine);
  onFile(directory, () => {
    mkdirSync(dirname(directory), { recursive: true });
    mkdirSync(join(directory, "engines"), { recursive: true, mode: 0o700 });
  });
  checkPrivate(directory);
  writeNew(serverFile(directory), createCurveKeys());
  addEngine(directory, engine);
  return readKeyDirectory(directory);
}

/** Makes the key of another engine and lets it in. Throws ConfigError when there is one of that name. */
export function addEngine(directory: string, name: string): AllowedEngine {
  checkName(name);
  checkPrivate(directory);
  const keys = createCurveKeys();
  writeNew(engineFile(directory, name), keys);
  const engine = { name, publicKey: keys.publicKey };
  writeAllowed(directory, [...readAllowed(directory), engine]);
  return engine;
}

/** Keeps an engine out from the next start of the control plane on, and deletes its key. */
export function revokeEngine(directory: string, name: string): void {
  const allowed = readAllowed(directory);
  if (!allowed.some((engine) => engine.name === name)) {
    const names = allowed.map((engine) => engine.name).join(", ") || "none";
    throw new ConfigError("name", name, `one of the engines that may connect: ${names}`);
  }
  writeAllowed(
    directory,
    allowed.filter((engine) => engine.name !== name),
  );
  rmSync(engineFile(directory, name), { force: true });
}

/** Reads the control plane's key and the allow-list. Throws ConfigError for keys that are missing or open to others. */
export function readKeyDirectory(directory: string): KeyDirectory {
  checkPrivate(directory);
  return { directory, server: readKeys(serverFile(directory)), allowed: readAllowed(directory) };
}

/** What a control plane at a tcp address is given. */
export function readCurve(directory: string): CurveOptions {
  const { server, allowed } = readKeyDirectory(directory);
  return { server, engines: allowed.map(({ publicKey }) => publicKey) };
}

/** Key pair of an engine. Throws ConfigError. */
export function readEngineKeys(directory: string, name: string): CurveKeys {
  checkName(name);
  return readKeys(engineFile(directory, name));
}

/** An engine's environment: how it reaches a control plane at `endpoint`. Holds its secret key. */
export function engineKeyVariables(
  server: Pick<CurveKeys, "publicKey">,
  engine: CurveKeys,
): Readonly<Record<string, string>> {
  return {
    TRIATTN_CURVE_SERVER_KEY: server.publicKey,
    TRIATTN_CURVE_PUBLIC_KEY: engine.publicKey,
    TRIATTN_CURVE_SECRET_KEY: engine.secretKey,
  };
}

const serverFile = (directory: string) => join(directory, "server.json");
const engineFile = (directory: string, name: string) => join(directory, "engines", `${name}.json`);
const allowFile = (directory: string) => join(directory, "engines.allow");

function checkName(name: string): void {
  if (!NAME.test(name)) {
    throw new ConfigError("name", name, "small letters, digits, dots, dashes and underscores, at most 64");
  }
}

function onFile<T>(path: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === undefined) throw error;
    const remedy =
      code === "EEXIST"
        ? "is there already and is not overwritten: name another directory, or move it away"
        : code === "ENOENT"
          ? "is not there: `triattn keys create` makes keys"
          : `cannot be used (${code})`;
    throw new ConfigError("keys", path, remedy, { cause: error });
  }
}

/** Secrets that others can read are none. */
function checkPrivate(path: string): void {
  const stats = onFile(path, () => lstatSync(path));
  const own = process.getuid?.();
  if ((stats.mode & 0o077) !== 0) {
    const mode = stats.isDirectory() ? "700" : "600";
    throw new ConfigError(
      "keys",
      path,
      `others can read it: chmod ${mode} it, and make new keys if they may have`,
    );
  }
  if (own !== undefined && stats.uid !== own) {
    throw new ConfigError("keys", path, "belongs to another user: use keys of your own");
  }
}

function readKeys(path: string): CurveKeys {
  checkPrivate(path);
  const text = onFile(path, () => readFileSync(path, "utf8"));
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    // Said below, without the text: it may hold a secret.
  }
  const keys = KeyFile.safeParse(json);
  if (keys.success) return keys.data;
  throw new ConfigError(
    "keys",
    path,
    "is not a file of `triattn keys`: publicKey and secretKey of 40 characters",
  );
}

/** Whole or not at all, mode 0600 from the first moment, and never over another file. */
function writeNew(path: string, keys: CurveKeys): void {
  const temporary = `${path}.${process.pid}.part`;
  onFile(path, () => {
    try {
      const file = openSync(temporary, "wx", 0o600);
      writeFileSync(file, `${JSON.stringify(keys, null, 2)}\n`);
      fsyncSync(file);
      closeSync(file);
      // Unlike a rename it fails where there is a file.
      linkSync(temporary, path);
    } finally {
      rmSync(temporary, { force: true });
    }
  });
}

function readAllowed(directory: string): AllowedEngine[] {
  const path = allowFile(directory);
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    return onFile(path, () => {
      throw error;
    });
  }
  // A key may hold a #, so only whole lines are comments.
  const lines = text.split("\n").filter((line) => line.trim() !== "" && !line.startsWith("# "));
  return lines.map((line) => {
    const [publicKey = "", name = ""] = line.trim().split(/\s+/);
    if (!KEY.test(publicKey))
      throw new ConfigError("keys", path, `a public key of 40 characters and a name a line`);
    return { name, publicKey };
  });
}

function writeAllowed(directory: string, engines: readonly AllowedEngine[]): void {
  const path = allowFile(directory);
  const temporary = `${path}.${process.pid}.part`;
  const lines = [
    "# Public keys of the engines that may connect.",
    ...engines.map((e) => `${e.publicKey} ${e.name}`),
  ];
  onFile(path, () => {
    try {
      writeFileSync(temporary, `${lines.join("\n")}\n`, { mode: 0o600 });
      renameSync(temporary, path);
    } finally {
      rmSync(temporary, { force: true });
    }
  });
}
