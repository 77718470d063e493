/**
 * Builds the npm package `triattn` in packages/cli/dist/npm, from where `npm pack` and `npm publish` take it:
 * the command line and the Node API in one bundle, the dashboard, the Python package with its entry point, and the statistics.
 */
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { build } from "tsdown";
import { writeDistInfo } from "../packages/cli/src/package.ts";
import { buildPage } from "../packages/dashboard/build.ts";
import { root } from "./setup/paths.ts";

const cli = join(root, "packages", "cli");
export const target = join(cli, "dist", "npm");

interface Manifest {
  name: string;
  version: string;
  dependencies?: Record<string, string>;
  devDependencies?: Record<string, string>;
  [field: string]: unknown;
}

const MATH = "@cortex-js/compute-engine";

const read = (directory: string): Manifest =>
  JSON.parse(readFileSync(join(directory, "package.json"), "utf8"));

/** What the bundle leaves outside: the dependencies of all packages in it, but not these packages themselves. */
function dependencies(): Record<string, string> {
  const packages = ["protocol", "control", "cli"].map((name) => read(join(root, "packages", name)));
  const all = packages.flatMap((manifest) => Object.entries(manifest.dependencies ?? {}));
  return Object.fromEntries(all.filter(([, version]) => !version.startsWith("workspace:")).sort());
}

function manifest(): Manifest {
  const { name, version, description, license, type, engines } = read(cli);
  return {
    name,
    version,
    description,
    keywords: ["vllm", "kv-cache", "llm", "inference", "triattention"],
    license,
    type,
    engines,
    bin: { triattn: "dist/bin.js" },
    exports: {
      ".": { types: "./dist/index.d.ts", default: "./dist/index.js" },
      "./package.json": "./package.json",
    },
    files: ["dist", "dashboard", "python", "stats", "tiny-reasoner"],
    dependencies: dependencies(),
    // Large, and only for one task of `triattn eval`, which says how to get it.
    peerDependencies: { [MATH]: read(cli).devDependencies?.[MATH] ?? "*" },
    peerDependenciesMeta: { [MATH]: { optional: true } },
  };
}

/** Builds the package; its directory. */
export async function buildPackage(): Promise<string> {
  rmSync(target, { recursive: true, force: true });
  mkdirSync(target, { recursive: true });
  await build({
    cwd: cli,
    config: false,
    entry: { bin: join(cli, "src", "bin.ts"), index: join(cli, "src", "index.ts") },
    outDir: join(target, "dist"),
    format: "esm",
    platform: "node",
    target: "node20",
    fixedExtension: false,
    deps: { alwaysBundle: [/^@triattn\//], neverBundle: [...Object.keys(dependencies()), MATH] },
    // One program of all three packages: their types end up in one file.
    dts: { tsconfig: join(root, "tsconfig.build.json") },
    logLevel: "warn",
  });
  await buildPage(join(target, "dashboard"));
  const python = join(target, "python");
  cpSync(join(root, "kernels", "triattn"), join(python, "triattn"), {
    recursive: true,
    filter: (path) => basename(path) !== "__pycache__",
  });
  writeDistInfo(python);
  cpSync(join(root, "stats"), join(target, "stats"), { recursive: true });
  // Once it has been trained.
  const tiny = join(root, "examples", "tiny-reasoner", "model");
  for (const file of [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
  ]) {
    const from = join(tiny, file);
    if (existsSync(from)) cpSync(from, join(target, "tiny-reasoner", file));
  }
  for (const file of ["LICENSE", "README.md"]) cpSync(join(root, file), join(target, file));
  writeFileSync(join(target, "package.json"), `${JSON.stringify(manifest(), null, 2)}\n`);
  return target;
}

if (import.meta.main ?? process.argv[1] === import.meta.filename) {
  process.stdout.write(`${await buildPackage()}\n`);
}
