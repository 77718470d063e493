import type { Page } from "playwright-core";
import { expect, test } from "vitest";
import { inChromium, live, violations } from "./setup.ts";

/** Brings a view into a state in which everything that it can show is there. */
const VIEWS: Record<string, (page: Page) => Promise<unknown>> = {
  "": (page) => page.locator(".recent li").first().waitFor(),
  "#/requests": (page) =>
    page
      .locator(".line")
      .first()
      .click()
      .then(() => page.locator(".map canvas").first().waitFor()),
  "#/policy": async (page) => {
    await page.getByLabel(/^KV budget/).fill("64");
    await page
      .getByText(/✓ Valid|→/)
      .first()
      .waitFor();
  },
  "#/events": (page) => page.locator(".line").first().waitFor(),
};

for (const dark of [true, false]) {
  inChromium(`accessible, ${dark ? "dark" : "light"}`, { dark, reducedMotion: true }, ({ open }) => {
    for (const [hash, prepare] of Object.entries(VIEWS)) {
      test(`axe finds nothing at ${hash || "the overview"}`, async () => {
        const { page, problems } = await open({ past: 20 }, hash);
        await live(page);
        await prepare(page);
        expect(await violations(page)).toEqual([]);
        expect(await page.locator("html").getAttribute("data-theme")).toBe(dark ? "dark" : "light");
        expect(problems).toEqual([]);
      });
    }

    test("axe finds nothing in tables, rules, dialogs and what went wrong", async () => {
      const { page } = await open({}, "#/requests");
      await live(page);
      await page.locator(".line").first().click();
      await page.locator(".map canvas").first().waitFor();
      for (let i = 0; i < 2; i++) await page.getByRole("button", { name: "Table" }).first().click();
      expect(await violations(page)).toEqual([]);
      await page.getByRole("link", { name: "Policy" }).click();
      await page.getByLabel("Policy document, JSON").fill('{ "name": ');
      await page.getByText("Line 1").waitFor();
      expect(await violations(page)).toEqual([]);
      await page.getByRole("button", { name: "Discard" }).click();
      await page.getByRole("tab", { name: /^Rules/ }).click();
      await page.getByLabel("Name").first().fill("other");
      await page.getByRole("button", { name: "Apply" }).click();
      await page.getByRole("dialog").waitFor();
      expect(await violations(page)).toEqual([]);
    });

    test("axe would find a control without a name and text too faint to read", async () => {
      const { page } = await open();
      await live(page);
      await page.evaluate(() => {
        document.querySelector(".bar .end button")?.removeAttribute("aria-label");
        document.querySelector(".bar .end button")?.removeAttribute("title");
        document.querySelector<HTMLElement>(".metric dt")?.style.setProperty("color", "#777f");
        document.querySelector<HTMLElement>(".metric dt")?.style.setProperty("background", "#666");
      });
      const found = (await violations(page)).join("\n");
      expect(found).toMatch(/button-name/);
      expect(found).toMatch(/color-contrast/);
    });
  });
}

inChromium("by the keyboard", {}, ({ open }) => {
  test("every stop of the Tab key has a name and is seen, and they go round", async () => {
    const { page } = await open({}, "#/requests");
    await live(page);
    await page.locator(".line").first().waitFor();
    const seen: string[] = [];
    for (let i = 0; i < 60; i++) {
      await page.keyboard.press("Tab");
      const stop = await page.evaluate(() => {
        const element = document.activeElement;
        if (element === null || element === document.body) return null;
        const { outlineStyle, outlineWidth } = getComputedStyle(element);
        const name = element.getAttribute("aria-label") ?? element.textContent?.trim() ?? "";
        return { name, seen: outlineStyle !== "none" && outlineWidth !== "0px" };
      });
      if (stop === null) break;
      expect(stop.name).not.toBe("");
      expect(stop, stop.name).toMatchObject({ seen: true });
      seen.push(stop.name);
    }
    expect(seen[0]).toBe("Skip to the content");
    expect(seen).toContain("Policy");
    expect(seen).toContain("Requests");
    // The table is one stop, its headings aside.
    expect(seen.length).toBeLessThan(30);
  });

  test("the table is walked by arrows, Enter opens a request, Escape closes it", async () => {
    const { page } = await open({ requests: 400 }, "#/requests");
    await live(page);
    const grid = page.getByRole("grid", { name: "Requests" });
    await page.locator(".line").first().waitFor();
    await grid.focus();
    await page.keyboard.press("End");
    await page.locator("[aria-rowindex='401'].active").waitFor();
    const active = await grid.getAttribute("aria-activedescendant");
    expect(await page.locator(`[id="${active}"]`).getAttribute("aria-rowindex")).toBe("401");
    await page.keyboard.press("Home");
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("Enter");
    await page.getByRole("region", { name: /^Request chatcmpl/ }).waitFor();
    expect(page.url()).toMatch(/#\/requests\/vllm-7f3a90c2\/chatcmpl-/);
    await page.getByRole("button", { name: "Close the request" }).focus();
    await page.keyboard.press("Escape");
    await page.getByRole("button", { name: "Close the request" }).waitFor({ state: "detached" });
    await page.keyboard.press("Control+Home");
  });

  test("charts and the heat map are read by arrows", async () => {
    const { page } = await open({ past: 60 });
    await live(page);
    await page.getByRole("application", { name: /^Residency: now Resident tokens/ }).focus();
    await page.keyboard.press("ArrowLeft");
    await page.keyboard.press("ArrowLeft");
    await page
      .getByRole("status")
      .filter({ hasText: /\d\d:\d\d:\d\d, Resident tokens [\d.]+k/ })
      .waitFor({ state: "attached" });
    await page.getByRole("link", { name: /^Requests/ }).click();
    await page.locator(".line").first().click();
    await page.getByRole("application", { name: /^Share of tokens kept/ }).focus();
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("ArrowRight");
    await page.getByText(/^layer 0, KV head 1, positions? [\d,]+( to [\d,]+)?: \d+ of \d+ kept$/).waitFor();
  });
});
