/**
 * Makes docs/screenshots from the page over a simulated engine: `pnpm run screenshots:dashboard [DIRECTORY]`.
 * Exits with 3 where there is no Chromium.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Page } from "playwright-core";
import UPNG from "upng-js";
import { buildPage, isBuilt } from "../build.ts";
import { Browser, findChromium, type PageOptions } from "./browser.ts";
import { type FakeServer, startFake } from "./fake/server.ts";

const directory =
  process.argv[2] ?? join(dirname(dirname(dirname(import.meta.dirname))), "docs", "screenshots");
const executable = findChromium();
if (executable === undefined) {
  process.stderr.write("no Chromium: install one, or name it by TRIATTN_CHROMIUM\n");
  process.exit(3);
}
if (!isBuilt()) await buildPage();
mkdirSync(directory, { recursive: true });

async function shoot(
  name: string,
  options: PageOptions,
  prepare: (page: Page, fake: FakeServer) => Promise<void>,
): Promise<void> {
  const fake = await startFake({ requests: 340, past: 640, everyMs: 500 });
  const browser = await Browser.open(executable ?? "", options);
  try {
    const page = await browser.page();
    await page.goto(fake.url);
    await page.locator(".pill.good").first().waitFor();
    await prepare(page, fake);
    writeFileSync(join(directory, `${name}.png`), small(await page.screenshot()));
    process.stdout.write(`${join(directory, `${name}.png`)}\n`);
  } finally {
    await browser.close();
    await fake.close();
  }
}

/** 256 colours are enough for a page, and a third of the bytes. */
function small(png: Buffer): Buffer {
  const bytes = png.buffer.slice(png.byteOffset, png.byteOffset + png.byteLength) as ArrayBuffer;
  const image = UPNG.decode(bytes);
  return Buffer.from(UPNG.encode(UPNG.toRGBA8(image), image.width, image.height, 256));
}

const overview = async (page: Page) => {
  await page.waitForTimeout(2500);
};
const request = async (page: Page, fake: FakeServer) => {
  await page.getByRole("link", { name: /^Requests/ }).click();
  // One whose rounds can all be seen.
  const young = fake.simulation
    .requests()
    .filter(({ computed, budget }) => budget === 2048 && computed > 4200 && computed < 6000);
  await page.getByLabel(/^Filter requests/).fill(young[0]?.request ?? "");
  await page.locator(".line").first().click();
  await page.getByLabel(/^Filter requests/).fill("");
  await page.locator(".map-frame canvas").waitFor();
  await page.waitForTimeout(1500);
};
const policy = async (page: Page) => {
  await page.getByRole("link", { name: "Policy" }).click();
  await page.getByLabel(/^KV budget/).fill("1024");
  await page.getByText("✓ Valid").waitFor();
  await page.waitForTimeout(500);
};
for (const dark of [true, false]) {
  const theme = dark ? "dark" : "light";
  await shoot(`overview-${theme}`, { dark }, overview);
  await shoot(`request-${theme}`, { dark }, request);
  await shoot(`policy-${theme}`, { dark }, policy);
}
await shoot("phone-dark", { dark: true, width: 390, height: 844 }, overview);
