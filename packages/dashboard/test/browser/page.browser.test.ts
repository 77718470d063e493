import { expect, test } from "vitest";
import { colour, heatMap } from "../../src/lib/heatmap.ts";
import { inChromium, live } from "./setup.ts";

inChromium("the page", {}, ({ open }) => {
  test("takes nothing from elsewhere and breaks no rule of its Content-Security-Policy", async () => {
    const { page, fake, problems } = await open({}, "");
    const hosts = new Set<string>();
    page.on("request", (request) => hosts.add(new URL(request.url()).host));
    await page.reload();
    await live(page);
    for (const view of ["Requests", "Policy", "Events", "Overview"]) {
      await page.getByRole("link", { name: new RegExp(`^${view}`) }).click();
    }
    await page.locator(".uplot canvas").first().waitFor();
    expect([...hosts]).toEqual([new URL(fake.url).host]);
    expect(problems).toEqual([]);
    const html = await (await page.request.get(fake.url)).text();
    expect(html).not.toMatch(/<script(?![^>]*src=)|<style|\sstyle=|\son\w+=/);
    // The policy holds: what is not the page's own does not run.
    await page.evaluate(() =>
      document.body.append(Object.assign(document.createElement("script"), { text: "window.x=1" })),
    );
    expect(await page.evaluate(() => (window as { x?: number }).x)).toBeUndefined();
  });

  test("shows the numbers that the control plane sends", async () => {
    const { page, fake } = await open({ everyMs: 10_000 });
    await live(page);
    const metric = (name: string) => page.locator(".metric", { hasText: name }).locator("strong").innerText();
    const { counters } = fake.simulation.engine();
    expect(await metric("Running")).toBe(String(counters?.running));
    expect(await metric("Waiting")).toBe(String(counters?.waiting));
    expect(await metric("Policy triattention")).toBe("2,048");
    await page.getByRole("article", { name: "Engine vllm-7f3a90c2" }).getByText("cuda-graphs").waitFor();
  });

  test("1,000 requests: few rows in the document, sorted and filtered at once, the end in reach", async () => {
    const { page } = await open({ requests: 1000, everyMs: 2000 }, "#/requests");
    await live(page);
    await page.locator(".line").first().waitFor();
    const grid = page.getByRole("grid", { name: "Requests" });
    expect(await grid.getAttribute("aria-rowcount")).toBe("1001");
    expect(await page.locator(".line").count()).toBeLessThan(60);
    const first = () => page.locator("[aria-rowindex='2'] [role=gridcell]").nth(0).innerText();
    await page.getByRole("button", { name: "Request", exact: true }).click();
    const ascending = await first();
    await page.getByRole("button", { name: "Request", exact: true }).click();
    expect((await first()) > ascending).toBe(true);
    expect(
      await page.getByRole("columnheader", { name: "Request", exact: true }).getAttribute("aria-sort"),
    ).toBe("descending");
    await page.getByLabel(/^Filter requests/).fill("tag:agent");
    await page.getByText(/^\d+ of 1,000$/).waitFor();
    expect(Number(await grid.getAttribute("aria-rowcount"))).toBeLessThan(400);
    await page.getByLabel(/^Filter requests/).fill("no-such-request");
    await page.getByText("No request matches.").waitFor();
    await page.getByLabel(/^Filter requests/).fill("");
    await grid.evaluate((element) => element.scrollTo(0, 1e6));
    await page.locator("[aria-rowindex='1001']").waitFor();
  });

  test("the heat map is the report, pixel for pixel, and its table says the same", async () => {
    const { page, fake } = await open({ everyMs: 60_000 }, "#/requests");
    await live(page);
    const row = page.locator(".line").first();
    const name = await row.locator("[role=gridcell]").first().innerText();
    await row.click();
    await page.locator(".map-frame canvas").waitFor();
    fake.simulation.watched = name;
    fake.simulation.showKept();
    const report = fake.simulation.takeKept();
    if (report === null) throw new Error("the simulation shows every request");
    const map = heatMap(report, "heads");
    const cells = [0, 9, 100, 255].map((bin) => ({ bin, row: (bin * 7) % map.rows }));
    const painted = await page.locator(".map-frame canvas").evaluate((canvas, wanted) => {
      const context = (canvas as HTMLCanvasElement).getContext("2d");
      return wanted.map(({ bin, row }) =>
        [...(context?.getImageData(bin, row, 1, 1).data ?? [])].slice(0, 3),
      );
    }, cells);
    expect(painted).toEqual(cells.map(({ bin, row }) => [...colour(map.shares[row * map.bins + bin] ?? 0)]));
    await page.getByRole("button", { name: "Layers" }).click();
    await page.getByRole("region", { name: "Kept tokens" }).getByRole("button", { name: "Table" }).click();
    const table = page.getByRole("region", { name: /as a table/ }).getByRole("row");
    expect(await table.count()).toBe(1 + report.layers);
  });

  test("events are filtered, and held still while they are read", async () => {
    const { page } = await open({ requests: 300, everyMs: 100 }, "#/events");
    await live(page);
    await page.getByRole("button", { name: "policy", exact: true }).click();
    await page.getByText("revision 1: triattention, budget 2,048").waitFor();
    expect(await page.locator(".line").count()).toBe(1);
    await page.getByRole("button", { name: "policy", exact: true }).click();
    await page.locator(".line .kind.round").first().waitFor();
    await page.getByRole("button", { name: "Hold" }).click();
    const newest = await page.locator(".line").first().innerText();
    await page.getByText(/^Go on \([1-9]\d* newer\)$/).waitFor();
    expect(await page.locator(".line").first().innerText()).toBe(newest);
  });

  test("the colours are the system's, or those that were chosen, also the next time", async () => {
    const { page } = await open();
    const theme = () => page.locator("html").getAttribute("data-theme");
    expect(await theme()).toBe("light");
    await page.emulateMedia({ colorScheme: "dark" });
    await page.locator("html[data-theme=dark]").waitFor();
    await page.getByRole("button", { name: /^Colours: as the system/ }).click();
    expect(await theme()).toBe("light");
    await page.reload();
    expect(await theme()).toBe("light");
    await page.getByRole("button", { name: /^Colours: light/ }).click();
    await page.getByRole("button", { name: /^Colours: dark/ }).click();
  });
});

for (const [width, height] of [
  [1280, 800],
  [390, 844],
] as const) {
  inChromium(`at ${width} × ${height}`, { width, height }, ({ open }) => {
    test("nothing sticks out at the side, and every view can be used", async () => {
      const { page } = await open({ past: 20 });
      await live(page);
      const check = async (what: string) => {
        const over = await page.evaluate(
          () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
        );
        expect(over, what).toBeLessThanOrEqual(0);
      };
      await check("overview");
      await page.getByRole("link", { name: /^Requests/ }).click();
      await page.locator(".line").first().waitFor();
      await check("requests");
      await page.locator(".line").first().click();
      await page.locator(".map-frame canvas").waitFor();
      await check("request");
      await page.getByRole("link", { name: "Policy" }).click();
      await page.getByText("✓ Valid").waitFor();
      await check("policy");
      await page.getByRole("tab", { name: /^Rules/ }).click();
      await check("rules");
      await page.getByRole("link", { name: "Events", exact: true }).click();
      await page.locator(".line").first().waitFor();
      await check("events");
    });
  });
}
