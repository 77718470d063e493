/** Builds the page: files with hashed names, nothing inline, nothing from elsewhere. `--if-needed`: unless it is there. */
import { cpSync, existsSync, readdirSync, renameSync, rmSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

const own = import.meta.dirname;

/** Where a clone has its built page. */
export const pageDirectory = join(own, "dist", "page");

/** Builds the page into a directory, in place of what is there. Resolves to that directory. */
export async function buildPage(outDir: string = pageDirectory): Promise<string> {
  const { build } = await import("vite");
  // Whole or not at all: another process may build it, or serve it, at the same time.
  const building = `${outDir}-${process.pid}`;
  await build({ configFile: join(own, "vite.config.ts"), build: { outDir: building, emptyOutDir: true } });
  const font = dirname(createRequire(import.meta.url).resolve("@fontsource-variable/inter/package.json"));
  cpSync(join(font, "LICENSE"), join(building, "assets", "Inter-LICENSE.txt"));
  rmSync(outDir, { recursive: true, force: true });
  try {
    renameSync(building, outDir);
  } catch (error) {
    rmSync(building, { recursive: true });
    // Another process was first.
    if (!existsSync(join(outDir, "index.html"))) throw error;
  }
  return outDir;
}

/** Whether the built page is there and no older than what it is built from. */
export function isBuilt(): boolean {
  const page = join(pageDirectory, "index.html");
  if (!existsSync(page)) return false;
  const named = ["index.html", "vite.config.ts", "build.ts", "../protocol/src/presets.ts"];
  const sources = [...named.map((file) => join(own, file)), ...files(join(own, "src"))];
  const newest = Math.max(...sources.map((file) => statSync(file).mtimeMs));
  return statSync(page).mtimeMs >= newest;
}

function files(directory: string): string[] {
  return readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
}

if (process.argv[1] === import.meta.filename) {
  const there = process.argv.includes("--if-needed") && isBuilt();
  process.stdout.write(`${there ? pageDirectory : await buildPage()}\n`);
}
