import { existsSync, mkdirSync, readFileSync, realpathSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { buildPackage } from "../build.ts";
import { root } from "../setup/paths.ts";

/** The npm package, built, with what it depends on beside it; its directory. */
export async function runnablePackage(): Promise<string> {
  const built = await buildPackage();
  const { dependencies } = JSON.parse(readFileSync(join(built, "package.json"), "utf8"));
  for (const name of Object.keys(dependencies)) {
    const places = ["cli", "control", "protocol"].map((p) => join(root, "packages", p, "node_modules", name));
    const link = join(built, "node_modules", name);
    mkdirSync(dirname(link), { recursive: true });
    symlinkSync(realpathSync(places.find((path) => existsSync(path)) ?? name), link);
  }
  return built;
}
