/** Builds the page: files with hashed names, nothing inline, nothing from elsewhere. */
import { cpSync, existsSync, readdirSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { build } from "vite";

const own = import.meta.dirname;

/** Where a clone has its built page. */
export const pageDirectory = join(own, "dist", "page");

/** Builds the page into a directory, which it empties first. Resolves to that directory. */
export async function buildPage(outDir: string = pageDirectory): Promise<string> {
  await build({ configFile: join(own, "vite.config.ts"), build: { outDir, emptyOutDir: true } });
  const font = dirname(createRequire(import.meta.url).resolve("@fontsource-variable/inter/package.json"));
  cpSync(join(font, "LICENSE"), join(outDir, "assets", "Inter-LICENSE.txt"));
  return outDir;
}

/** Whether the built page is there and no older than what it is built from. */
export function isBuilt(): boolean {
  const page = join(pageDirectory, "index.html");
  if (!existsSync(page)) return false;
  const sources = [
    join(own, "index.html"),
    join(own, "vite.config.ts"),
    join(own, "build.ts"),
    ...files(join(own, "src")),
  ];
  const newest = Math.max(...sources.map((file) => statSync(file).mtimeMs));
  return statSync(page).mtimeMs >= newest;
}

function files(directory: string): string[] {
  return readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
}

if (process.argv[1] === import.meta.filename) process.stdout.write(`${await buildPage()}\n`);
