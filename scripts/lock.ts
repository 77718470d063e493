/**
 * Locks the Python environments again: `pnpm lock [ENVIRONMENT…]`, after a change to requirements/*.in.
 * Versions that still fit stay; `--upgrade` takes the newest. No host is written into the lock files.
 */
import { join } from "node:path";
import { setupUv } from "./setup/index.ts";
import { type EnvironmentName, environments, lockFile, root, uv } from "./setup/paths.ts";
import { execute, failure, SetupError, say, step } from "./setup/steps.ts";

const args = process.argv.slice(2);
const upgrade = args.includes("--upgrade");
const named = args.filter((arg) => arg !== "--upgrade");
try {
  await setupUv();
  for (const name of named.length > 0 ? (named as EnvironmentName[]) : environments) {
    await step(`requirements/${name}.txt`, async () => {
      const source = (extension: string) => join("requirements", `${name}.${extension}`);
      const compile = [
        "pip",
        "compile",
        "--quiet",
        "--generate-hashes",
        "--no-emit-index-url",
        "--no-header",
      ];
      const target = ["--universal", "--python-version", "3.11"];
      const done = await execute(
        uv,
        [
          ...compile,
          ...target,
          ...(upgrade ? ["--upgrade"] : []),
          "--override",
          source("overrides.txt"),
          "--output-file",
          lockFile(name),
          source("in"),
        ],
        { cwd: root },
      );
      if (done.code !== 0) throw failure("uv pip compile", done);
    });
  }
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  say(`${error.message}\n→ ${error.remedy}`);
  process.exit(3);
}
