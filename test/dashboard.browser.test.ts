import { createControlPlane } from "@triattn/control";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { FakeEngine } from "../packages/control/test/fake-engine.ts";
import { buildPage, isBuilt, pageDirectory } from "../packages/dashboard/build.ts";
import { Browser, findChromium } from "../packages/dashboard/test/browser.ts";

const TOKEN = "0123456789abcdef";
const executable = findChromium();

const counters = {
  ...{
    step: 7n,
    running: 1,
    waiting: 0,
    residentTokens: 300,
    peakResidentTokens: 320,
    usedBlocks: 8,
    peakUsedBlocks: 9,
  },
  ...{ tokensGenerated: 4000n, requestsFinished: 2n, preemptions: 0n, rounds: 5n, tokensEvicted: 640n },
  ...{
    blocksReclaimed: 20n,
    roundsSkipped: 0n,
    roundBatches: 5n,
    planSeconds: 0,
    roundSeconds: 0,
    stallSeconds: 0,
  },
  eventsDropped: 0n,
};
const request = {
  ...{
    request: "chatcmpl-1",
    state: "running",
    priority: 0,
    tags: ["batch"],
    rule: null,
    prompt: 40,
    computed: 940,
  },
  ...{ resident: 300, budget: 256, evictedTotal: 640, rounds: 5 },
};
const kept = {
  ...{
    type: "kept",
    request: "chatcmpl-1",
    step: 7n,
    computed: 940,
    resident: 256,
    layers: 2,
    kvHeads: 2,
    bins: 4,
  },
  counts: new Uint8Array(
    new Uint16Array([64, 64, 64, 64, 100, 28, 28, 100, 235, 0, 0, 21, 0, 21, 0, 235]).buffer,
  ),
};
const round = {
  ...{
    kind: "round",
    step: 7n,
    request: "chatcmpl-1",
    revision: 1,
    budget: 256,
    computed: 900,
    evicted: 128,
  },
  ...{ evictedTotal: 640, blocksReclaimed: 4, blocksCopied: 0 },
};

/** The page, the real control plane that serves it, and an engine that says what the test tells it to. */
describe.skipIf(executable === undefined)("the dashboard over a control plane", () => {
  let browser: Browser;
  beforeAll(async () => {
    if (!isBuilt()) await buildPage();
    browser = await Browser.open(executable ?? "");
  }, 60_000);
  afterAll(() => browser?.close());

  test("a token, an engine, a request with its rounds and what they keep; a policy that is acknowledged, one that is refused", async () => {
    const plane = await createControlPlane({
      policy: { name: "start", terms: [{ kind: "recency" }], budget: 256, pin: { window: 32 } },
      http: { port: 0, token: TOKEN, dashboardDirectory: pageDirectory },
      logger: pino({ level: "silent" }),
    });
    await using engine = new FakeEngine(plane.endpoint);
    try {
      await engine.greet();
      await engine.acknowledge(3n);
      await engine.send({ type: "counters", counters });
      const problems: string[] = [];
      const page = await browser.page(problems);
      await page.goto(`${plane.url}/`);
      await page.getByRole("textbox", { name: "Token" }).fill(TOKEN);
      await page.getByRole("button", { name: "Connect" }).click();
      await page.getByText("Live", { exact: true }).waitFor();
      await page.getByRole("article", { name: "Engine engine-1" }).getByText("1, from step 3").waitFor();

      // The page asks for requests, and for what one keeps only when it is looked at.
      expect(await engine.next("watch")).toMatchObject({ requests: true, kept: null });
      await engine.send({ type: "requests", step: 7n, requests: [request], omitted: 0 });
      await page.getByRole("link", { name: /^Requests/ }).click();
      await page.locator(".line", { hasText: "chatcmpl-1" }).click();
      while ((await engine.next("watch")).kept !== "chatcmpl-1");
      await engine.send({ type: "events", first: 0n, events: [round] });
      await engine.send(kept);
      await page.getByText("256 of 940, step 7").waitFor();
      await page.getByText("1 seen; resident tokens over the logical length").waitFor();

      await page.getByRole("link", { name: "Policy" }).click();
      await page.getByLabel(/^KV budget/).fill("128");
      await page.getByText("✓ Valid").waitFor();
      await page.getByRole("button", { name: "Apply" }).click();
      await page.getByRole("button", { name: "Put in force" }).click();
      expect((await engine.acknowledge(12n)).policy.budget).toBe(128);
      await page.getByText("Revision 2 is in force: step 12.").first().waitFor();

      await page.getByLabel(/^KV budget/).fill("64");
      await page.getByText("✓ Valid").waitFor();
      await page.getByRole("button", { name: "Apply" }).click();
      await page.getByRole("button", { name: "Put in force" }).click();
      await engine.refuse();
      // The one before comes back, under a new number.
      expect((await engine.acknowledge(14n)).policy.budget).toBe(128);
      await page
        .getByRole("alert")
        .getByText(/^Not in force: engine-1 refused it/)
        .waitFor();
      expect(plane.policy?.policy.budget).toBe(128);
      // Chromium itself says that the first answer was 401, and the refusal's status.
      expect(problems.filter((problem) => !/status of (401|422)/.test(problem))).toEqual([]);
    } finally {
      await plane.close();
    }
  }, 60_000);
});
