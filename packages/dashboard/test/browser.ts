import { accessSync, constants, existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { type BrowserContext, chromium } from "playwright-core";

const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];

/** A Chromium to test with: `TRIATTN_CHROMIUM`, or one that is installed. undefined: there is none. */
export function findChromium(environment: NodeJS.ProcessEnv = process.env): string | undefined {
  const { TRIATTN_CHROMIUM: named, PATH = "" } = environment;
  if (named !== undefined && named !== "") {
    if (!runs(named))
      throw new Error(`TRIATTN_CHROMIUM is ${named}: no program; name a Chromium, or leave it out`);
    return named;
  }
  const places = [
    "/usr/bin/chromium",
    ...PATH.split(delimiter).flatMap((dir) => NAMES.map((name) => join(dir, name))),
  ];
  return places.find(runs);
}

function runs(path: string): boolean {
  if (!existsSync(path)) return false;
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

export interface PageOptions {
  readonly dark?: boolean;
  readonly width?: number;
  readonly height?: number;
  readonly scale?: number;
  readonly reducedMotion?: boolean;
}

/** A browser with nothing of anybody in it. */
export class Browser {
  /** Its user data directory. */
  readonly directory: string;
  readonly #context: BrowserContext;

  private constructor(directory: string, context: BrowserContext) {
    this.directory = directory;
    this.#context = context;
  }

  static async open(executablePath: string, options: PageOptions = {}): Promise<Browser> {
    const { dark = false, width = 1280, height = 800, scale = 1, reducedMotion = false } = options;
    const directory = mkdtempSync(join(tmpdir(), "triattn-chromium-"));
    const context = await chromium.launchPersistentContext(directory, {
      executablePath,
      headless: true,
      args: FLAGS,
      viewport: { width, height },
      deviceScaleFactor: scale,
      colorScheme: dark ? "dark" : "light",
      reducedMotion: reducedMotion ? "reduce" : "no-preference",
      // A Chromium without a locale of its own names none that Intl takes.
      locale: "en-US",
      timezoneId: "UTC",
    });
    return new Browser(directory, context);
  }

  get context(): BrowserContext {
    return this.#context;
  }

  /** A new page; everything that goes wrong in it is put on `problems`. */
  async page(problems: string[] = []) {
    const page = await this.#context.newPage();
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("console", (message) => {
      if (message.type() === "error") problems.push(message.text());
    });
    return page;
  }

  async close(): Promise<void> {
    await this.#context.close();
    rmSync(this.directory, { recursive: true, force: true });
  }
}
