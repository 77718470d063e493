import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, onTestFinished } from "vitest";
import { buildPage, isBuilt } from "../../build.ts";
import { Browser, findChromium, type PageOptions } from "../browser.ts";
import { type FakeOptions, type FakeServer, startFake } from "../fake/server.ts";

const executable = findChromium();
if (executable === undefined) {
  process.stderr.write(
    "\nSKIPPED: the dashboard in a browser. No Chromium: install one, or name it by TRIATTN_CHROMIUM\n\n",
  );
}

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export interface Opened {
  readonly page: Page;
  readonly fake: FakeServer;
  /** Errors of the page, of its scripts and of its Content-Security-Policy. */
  readonly problems: string[];
}

export interface Session {
  open(fake?: Partial<FakeOptions>, hash?: string): Promise<Opened>;
}

/** Tests in a real Chromium; skipped, visibly, where there is none. */
export function inChromium(name: string, options: PageOptions, tests: (session: Session) => void): void {
  describe.skipIf(executable === undefined)(name, () => {
    let browser: Browser;
    beforeAll(async () => {
      if (!isBuilt()) await buildPage();
      browser = await Browser.open(executable ?? "", options);
    }, 60_000);
    afterAll(async () => {
      await browser?.close();
    });
    tests({
      async open(fakeOptions = {}, hash = "") {
        const fake = await startFake({ requests: 60, ...fakeOptions });
        const problems: string[] = [];
        const page = await browser.page(problems);
        page.setDefaultTimeout(15_000);
        onTestFinished(async () => {
          await page.close();
          await fake.close();
        });
        await page.goto(`${fake.url}/${hash}`);
        return { page, fake, problems };
      },
    });
  });
}

/** Waits until the page has data. */
export const live = (page: Page): Promise<void> => page.getByText("Live", { exact: true }).waitFor();

/** What axe-core finds wrong, a line each. Run from outside, since the page lets no foreign script in. */
export async function violations(page: Page): Promise<string[]> {
  await page.evaluate(axe);
  return page.evaluate(async () => {
    const { axe } = window as unknown as { axe: { run(): Promise<AxeResults> } };
    interface AxeResults {
      violations: { id: string; nodes: { target: string[]; failureSummary: string }[] }[];
    }
    const { violations } = await axe.run();
    return violations.flatMap(({ id, nodes }) =>
      nodes.map(({ target, failureSummary }) => `${id}: ${target.join(" ")}: ${failureSummary}`),
    );
  });
}
