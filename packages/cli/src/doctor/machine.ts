import { accessSync, constants, mkdtempSync, rmSync, statfsSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DEFAULT_HTTP_PORT } from "@triattn/protocol";
import { ControlClient } from "../http/client.ts";
import { pluginDirectory } from "../package.ts";
import { type Backend, backendOf } from "../serve/backends.ts";
import { readEngineFlags } from "../serve/flags.ts";
import { checkPort } from "../serve/port.ts";
import { version } from "../version.ts";
import { bad, checked, type Finding, fromError, ok, warn } from "./finding.ts";

const OLDEST_NODE = [20, 11] as const;
const TEMPORARY_BYTES = 16e6;
const SHARED_BYTES = 256e6;
/** The path of a socket: `/triattn-XXXXXX/control.sock` below the temporary directory, at most 103 bytes. */
const LONGEST_TEMPORARY = 103 - "/triattn-XXXXXX/control.sock".length;

const size = (bytes: number) =>
  bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(0)} MB`;

export function node(current = process.versions.node): Finding {
  const [major = 0, minor = 0] = current.split(".").map(Number);
  const old = major < OLDEST_NODE[0] || (major === OLDEST_NODE[0] && minor < OLDEST_NODE[1]);
  const found = `Node ${current}, triattn ${version}, ${process.platform} ${process.arch}`;
  return old ? bad("node", found, `install Node ${OLDEST_NODE.join(".")} or newer`) : ok("node", found);
}

/** The control plane's socket and what the engine shares between its processes lie in the temporary directory. */
export function temporary(directory = tmpdir()): Finding {
  const fix = "name another directory by TMPDIR, one of your own";
  if (Buffer.byteLength(directory) > LONGEST_TEMPORARY) {
    return bad(
      "tmp",
      `${directory} is too long for a socket's path`,
      `${fix}, of at most ${LONGEST_TEMPORARY} bytes`,
    );
  }
  try {
    const made = mkdtempSync(join(directory, "triattn-"));
    const mode = statSync(made).mode & 0o777;
    rmSync(made, { recursive: true });
    if ((mode & 0o077) !== 0) {
      return bad("tmp", `${directory} lets others into new directories (mode ${mode.toString(8)})`, fix);
    }
  } catch (error) {
    return bad("tmp", `${directory} cannot be written (${(error as NodeJS.ErrnoException).code})`, fix);
  }
  const { bavail, bsize } = statfsSync(directory);
  const free = bavail * bsize;
  const found = `${directory}, ${size(free)} free`;
  return free < TEMPORARY_BYTES ? bad("tmp", found, `free some space, or ${fix}`) : ok("tmp", found);
}

/** Ranks of one engine talk through it. */
export function sharedMemory(directory = "/dev/shm"): Finding[] {
  if (process.platform !== "linux") return [];
  try {
    accessSync(directory, constants.W_OK);
    const { bavail, bsize } = statfsSync(directory);
    const found = `${directory}, ${size(bavail * bsize)} free`;
    if (bavail * bsize >= SHARED_BYTES) return [ok("shm", found)];
    return [warn("shm", found, "several ranks need more: give the container --shm-size 1g, or --ipc host")];
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return [warn("shm", `${directory} cannot be written (${code})`, "several ranks of one engine need it")];
  }
}

/** Where the engine would listen, and where the dashboard would. */
export async function ports(
  engineFlags: readonly string[],
  backend: Backend = backendOf("vllm"),
): Promise<readonly Finding[]> {
  const engine = await checked("port", async () => {
    const flags = readEngineFlags(engineFlags, backend);
    if (flags.port === 0) return ok("port", "the engine takes a free one");
    await checkPort(flags);
    return ok("port", flags.uds ?? `${flags.bind ?? "*"}:${flags.port} is free for the engine`);
  });
  return [...engine, await dashboardPort()];
}

async function dashboardPort(): Promise<Finding> {
  const where = `127.0.0.1:${DEFAULT_HTTP_PORT}`;
  try {
    const flags = readEngineFlags(["--host", "127.0.0.1", "--port", String(DEFAULT_HTTP_PORT)]);
    await checkPort(flags);
    return ok("port", `${where} is free for the dashboard`);
  } catch (error) {
    const other = "choose another: --dashboard PORT";
    try {
      const { engines } = await new ControlClient(where, process.env.TRIATTN_HTTP_TOKEN).state();
      return warn("port", `${where}: a control plane with ${engines.length} engines serves there`, other);
    } catch {
      return { ...fromError("port", error, "warn"), fix: `taken, so for the dashboard ${other}` };
    }
  }
}

/** The plugin goes onto the engine's PYTHONPATH from where triattn is installed. */
export async function plugin(): Promise<Finding> {
  return ok("plugin", await pluginDirectory());
}
