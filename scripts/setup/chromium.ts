import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { findChromium } from "../../packages/dashboard/test/browser.ts";
import { tools } from "./paths.ts";
import { execute, failure, SetupError, say, step } from "./steps.ts";

/** A headless Chromium with the libraries that it needs, packed for npm; nothing of the system but glibc. */
const PACKAGE = "@sparticuz/chromium@153.0.0";
const directory = join(tools, "chromium");
const unpacked = join(directory, "unpacked");

/**
 * The environment in which browser tests find a Chromium: one that is installed, or, on x64 Linux, one from npm in
 * `.tools/chromium`. Empty where there is none; the tests are skipped then, and say so.
 */
export async function setupChromium(): Promise<NodeJS.ProcessEnv> {
  if (findChromium() !== undefined) return {};
  if (process.platform !== "linux" || process.arch !== "x64") return {};
  const stamp = join(directory, ".triattn-package");
  try {
    if (!existsSync(stamp) || readFileSync(stamp, "utf8") !== PACKAGE) await unpack(stamp);
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    say(`no Chromium: ${error.message}\n→ ${error.remedy}`);
    return {};
  }
  return {
    TRIATTN_CHROMIUM: join(unpacked, "chromium"),
    LD_LIBRARY_PATH: [join(unpacked, "al2023", "lib"), process.env.LD_LIBRARY_PATH].filter(Boolean).join(":"),
    FONTCONFIG_FILE: join(unpacked, "fonts.conf"),
  };
}

async function unpack(stamp: string): Promise<void> {
  await step("Chromium for the browser tests (npm package, 270 MB unpacked)", async () => {
    rmSync(directory, { recursive: true, force: true });
    mkdirSync(unpacked, { recursive: true });
    const npm = ["install", "--no-audit", "--no-fund", "--no-save", "--prefix", directory, PACKAGE];
    const installed = await execute("npm", npm, { cwd: directory });
    if (installed.code !== 0) throw failure("npm install of Chromium", installed);
    // It unpacks itself into the temporary directory, and its libraries only where it believes to need them.
    const script = `import("@sparticuz/chromium").then((module) => module.default.executablePath())`;
    const done = await execute(process.execPath, ["-e", script], {
      cwd: directory,
      env: { ...process.env, TMPDIR: unpacked, AWS_EXECUTION_ENV: "AWS_Lambda_nodejs22.x" },
    });
    if (done.code !== 0 || !existsSync(join(unpacked, "chromium"))) throw failure("unpacking Chromium", done);
    // Its own names directories that are not there: without a font every text is empty.
    const fonts = `<dir>${join(unpacked, "fonts")}</dir><cachedir>${join(unpacked, "fonts-cache")}</cachedir>`;
    writeFileSync(join(unpacked, "fonts.conf"), `<fontconfig>${fonts}</fontconfig>\n`);
    writeFileSync(stamp, PACKAGE);
  });
}
