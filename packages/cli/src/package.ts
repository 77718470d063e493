import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { onDisk } from "./errors.ts";
import { packageDirectory, version } from "./version.ts";

export { version };

/** The root of the clone that this runs from; undefined when it was installed from npm. */
export const cloneRoot: string | undefined = (() => {
  const root = dirname(dirname(packageDirectory));
  return existsSync(join(root, "kernels", "triattn", "launch.py")) ? root : undefined;
})();

/** The directory that holds the Python package `triattn`, as it came with this one. */
export const pythonRoot =
  cloneRoot === undefined ? join(packageDirectory, "python") : join(cloneRoot, "kernels");

/** Where the dashboard's built page is; undefined where it is not built. */
export function dashboardDirectory(): string | undefined {
  const directory =
    cloneRoot === undefined
      ? join(packageDirectory, "dashboard")
      : join(cloneRoot, "packages", "dashboard", "dist", "page");
  return existsSync(join(directory, "index.html")) ? directory : undefined;
}

const ENTRY_POINTS = `[vllm.general_plugins]
triattn = triattn.engines.vllm.plugin:register

[sglang.srt.plugins]
triattn = triattn.engines.sglang.plugin:register
`;

/** Writes the metadata by which Python finds the plugin of the package in `directory`, where it is missing. */
export function writeDistInfo(directory: string): void {
  const name = `triattn-${version}.dist-info`;
  for (const old of readdirSync(directory)) {
    if (/^triattn-.*\.dist-info$/.test(old) && old !== name)
      rmSync(join(directory, old), { recursive: true });
  }
  const written = join(directory, name, "entry_points.txt");
  if (existsSync(written)) {
    // A clone keeps its version from one commit to the next, not its entry points.
    if (readFileSync(written, "utf8") === ENTRY_POINTS) return;
    rmSync(join(directory, name), { recursive: true, force: true });
  }
  const temporary = mkdtempSync(join(directory, ".dist-info-"));
  writeFileSync(join(temporary, "METADATA"), `Metadata-Version: 2.1\nName: triattn\nVersion: ${version}\n`);
  writeFileSync(join(temporary, "entry_points.txt"), ENTRY_POINTS);
  try {
    renameSync(temporary, join(directory, name));
  } catch (error) {
    rmSync(temporary, { recursive: true, force: true });
    // Another process was first.
    if (!existsSync(join(directory, name, "entry_points.txt"))) throw error;
  }
}

/** The directory to put on an engine's PYTHONPATH: the package, and the entry point that vLLM looks for. */
export async function pluginDirectory(): Promise<string> {
  await onDisk(pythonRoot, () => writeDistInfo(pythonRoot));
  return pythonRoot;
}
