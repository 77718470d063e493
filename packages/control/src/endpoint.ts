import { chmodSync, lstatSync, mkdirSync, mkdtempSync, rmdirSync, rmSync, type Stats } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { dirname, isAbsolute, join } from "node:path";
import { EndpointError } from "./errors.ts";

/** Longest path of a Unix socket that Linux and macOS both take. */
const LONGEST_PATH = 103;

/** Where to listen, and what to undo afterwards. */
export interface Endpoint {
  readonly address: string;
  /** After binding: shuts other users out. */
  protect(): void;
  /** After closing: leaves nothing behind. */
  remove(): void;
}

/**
 * Checks an address before anything listens at it. Without one, a socket in a new private directory.
 * Throws EndpointError.
 */
export async function prepareEndpoint(address: string | undefined, curve: boolean): Promise<Endpoint> {
  if (address === undefined) {
    const directory = mkdtempSync(join(tmpdir(), "triattn-"));
    return ipc(join(directory, "control.sock"), () => rmdirSync(directory));
  }
  if (address.startsWith("ipc://")) {
    const path = address.slice("ipc://".length);
    if (!isAbsolute(path)) {
      throw new EndpointError("endpoint", address, "ipc:// followed by an absolute path");
    }
    checkDirectory(address, dirname(path));
    await checkSocket(address, path);
    return ipc(path, () => {});
  }
  if (!address.startsWith("tcp://")) {
    throw new EndpointError("endpoint", address, "an address that begins with ipc:// or tcp://");
  }
  if (!curve) {
    throw new EndpointError("endpoint", address, "give curve keys: tcp is never served without");
  }
  return { address, protect() {}, remove() {} };
}

function ipc(path: string, after: () => void): Endpoint {
  const address = `ipc://${path}`;
  if (Buffer.byteLength(path) > LONGEST_PATH) {
    throw new EndpointError("endpoint", address, `a path of at most ${LONGEST_PATH} bytes`);
  }
  return {
    address,
    // The directory keeps others out already; between binding and this nobody could connect.
    protect: () => chmodSync(path, 0o600),
    remove: () => {
      rmSync(path, { force: true });
      after();
    },
  };
}

function checkDirectory(address: string, directory: string): void {
  let stats: Stats;
  try {
    mkdirSync(directory, { mode: 0o700, recursive: true });
    stats = lstatSync(directory);
  } catch (cause) {
    throw new EndpointError("endpoint", address, `a directory that can be made (${String(cause)})`, {
      cause,
    });
  }
  const own = process.getuid?.();
  if (!stats.isDirectory() || (own !== undefined && stats.uid !== own) || (stats.mode & 0o077) !== 0) {
    throw new EndpointError(
      "endpoint",
      address,
      `a directory of your own that others cannot enter (chmod 700)`,
    );
  }
}

/** libzmq would take a socket that is being served away from its owner without a word. */
async function checkSocket(address: string, path: string): Promise<void> {
  const stats = lstatSync(path, { throwIfNoEntry: false });
  if (stats === undefined) return;
  if (!stats.isSocket()) {
    throw new EndpointError("endpoint", address, "a path that is free: this one is not a socket");
  }
  const served = await new Promise<boolean>((resolve) => {
    const probe = connect(path);
    probe.once("connect", () => {
      probe.destroy();
      resolve(true);
    });
    probe.once("error", () => resolve(false));
  });
  if (served) {
    throw new EndpointError("endpoint", address, "another address: a control plane is listening at this one");
  }
  rmSync(path, { force: true });
}
