import { expect, test } from "vitest";
import { inChromium, live } from "./setup.ts";

inChromium("the policy editor", {}, ({ open }) => {
  test("previews a change, applies it, and says from which step it is in force", async () => {
    const { page, fake, problems } = await open({}, "#/policy");
    await live(page);
    await page.getByLabel(/^KV budget/).fill("512");
    await page.getByText("✓ Valid").waitFor();
    const diff = page.getByRole("region", { name: "Lines that change" });
    await diff.locator(".removed", { hasText: '"budget": 2048' }).waitFor();
    await diff.locator(".added", { hasText: '"budget": 512' }).waitFor();
    const compressed = page.locator(".effect div", { hasText: "Requests compressed" }).locator("dd");
    expect(Number((await compressed.innerText()).split(" ")[0])).toBeGreaterThan(0);
    expect(fake.received).toEqual([]);
    await page.getByRole("button", { name: "Apply" }).click();
    await page.getByRole("dialog").getByText("policy.budget").waitFor();
    await page.getByRole("button", { name: "Put in force" }).click();
    await page
      .getByText(/^Revision 2 is in force: step [\d,]+\.$/)
      .first()
      .waitFor();
    expect(fake.received).toMatchObject([
      {
        method: "PUT",
        path: "/api/policy",
        body: { policy: { budget: 512 }, rules: [{ name: "interactive" }, { name: "batch" }] },
      },
    ]);
    await page.locator(".metric", { hasText: "rev. 2" }).getByText("512").waitFor();

    // And back again.
    await page.getByRole("button", { name: "Roll back to revision 1" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Roll back" }).click();
    await page.locator(".metric", { hasText: "rev. 3" }).getByText("2,048").waitFor();
    expect(await page.getByLabel(/^KV budget/).inputValue()).toBe("2048");
    expect(problems).toEqual([]);
  });

  test("a preset brings its terms, and leaves the numbers", async () => {
    const { page } = await open({}, "#/policy");
    await live(page);
    await page.getByLabel(/^KV budget/).fill("768");
    await page.getByLabel("Start from a preset").selectOption("keydiff");
    await page.getByText('"kind": "keydiff"').first().waitFor();
    const document = JSON.parse(await page.getByLabel("Policy document, JSON").inputValue());
    expect(document).toMatchObject({ name: "keydiff", budget: 768, interval: 128 });
  });

  test("what is wrong is said with its line, by the page or by the control plane, and nothing can be applied", async () => {
    const { page } = await open({}, "#/policy");
    await live(page);
    const editor = page.getByLabel("Policy document, JSON");
    const text = await editor.inputValue();
    await editor.fill(text.replace('"budget": 2048,', '"budget": 2048'));
    await page.getByText("This is not JSON").waitFor();
    await page.getByText("Line 5:").waitFor();
    await editor.fill(text.replace('"budget": 2048,', '"budget": -1,'));
    await page.getByText("Line 4:").waitFor();
    await page
      .getByText(/policy\.budget/)
      .first()
      .waitFor();
    expect(await page.locator(".gutter .wrong").innerText()).toBe("4");
    expect(await page.getByRole("button", { name: "Apply" }).isDisabled()).toBe(true);
    await editor.fill(text.replace('"budget": 2048,', '"budget": 1024,'));
    await page.getByText("✓ Valid").waitFor();
    expect(await page.getByRole("button", { name: "Apply" }).isDisabled()).toBe(false);
  });

  test("a policy that an engine refuses is not in force, and the page says why", async () => {
    const { page } = await open({}, "#/policy");
    await live(page);
    const editor = page.getByLabel("Policy document, JSON");
    await editor.fill((await editor.inputValue()).replace('"triattention"', '"refuse-me"'));
    await page.getByText("✓ Valid").waitFor();
    await page.getByRole("button", { name: "Apply" }).click();
    await page.getByRole("button", { name: "Put in force" }).click();
    await page
      .getByRole("alert")
      .getByText(/Not in force: vllm-7f3a90c2 refused it: needs statistics/)
      .waitFor();
    expect(await editor.inputValue()).toContain("refuse-me");
  });

  test("rules are added, moved and removed", async () => {
    const { page, fake } = await open({}, "#/policy");
    await live(page);
    await page.getByRole("tab", { name: "Rules (2)" }).click();
    await page.getByRole("button", { name: "Add a rule" }).click();
    await page.getByLabel("Name").nth(2).fill("night");
    await page.getByLabel("Tags, all of").nth(2).fill("night, cheap");
    await page.getByLabel("Budget").nth(2).fill("256");
    await page.locator(".f-preset select").nth(2).selectOption("streaming");
    await page.getByRole("button", { name: "Move rule night up" }).click();
    await page.getByRole("button", { name: "Remove rule interactive" }).click();
    await page.getByText("✓ Valid").waitFor();
    await page.getByRole("button", { name: "Apply" }).click();
    await page.getByRole("button", { name: "Put in force" }).click();
    await page
      .getByText(/^Revision 2 is in force/)
      .first()
      .waitFor();
    expect(fake.received[0]?.body).toMatchObject({
      rules: [
        { name: "night", match: { tags: ["night", "cheap"] }, budget: 256, policy: "streaming" },
        { name: "batch", match: { tags: ["batch"] } },
      ],
    });
  });

  test("somebody else's change is said, and does not overwrite the draft", async () => {
    const { page, fake } = await open({}, "#/policy");
    await live(page);
    await page.getByLabel(/^KV budget/).fill("512");
    fake.simulation.setPolicy({ ...fake.simulation.policy.policy, budget: 4096 }, []);
    await page.getByText("Revision 2 was put in force meanwhile").waitFor();
    expect(await page.getByLabel(/^KV budget/).inputValue()).toBe("512");
    await page.getByRole("button", { name: "Start again from it" }).click();
    expect(await page.getByLabel(/^KV budget/).inputValue()).toBe("4096");
  });
});

inChromium("the connection", {}, ({ open }) => {
  test("a control plane that goes is said at once, its numbers marked as old, and picked up again", async () => {
    const { page, fake } = await open({ everyMs: 100 });
    await live(page);
    await fake.down();
    await page.getByText("Reconnecting", { exact: true }).waitFor();
    await page.getByText(/^Connection lost: .* What is shown is from \d\d:\d\d:\d\d\.$/).waitFor();
    await page.locator(".strip.stale").waitFor({ timeout: 10_000 });
    await fake.up();
    await page.getByRole("button", { name: "Try now" }).click();
    await live(page);
    expect(await page.locator(".stale").count()).toBe(0);
    // Events go on where they stopped, each once.
    await page.getByRole("link", { name: "Events", exact: true }).click();
    await page.getByRole("button", { name: "policy", exact: true }).click();
    await page.locator(".line").first().waitFor();
    expect(await page.locator(".line").count()).toBe(1);
  });

  test("an engine that goes is said", async () => {
    const { page, fake } = await open({ everyMs: 100 });
    await live(page);
    fake.simulation.connected = false;
    await page.getByText("Disconnected", { exact: true }).waitFor();
    await page.getByText(/^The engine is disconnected/).waitFor();
  });

  test("a token is asked for, refused, taken, and kept for this tab only", async () => {
    const { page } = await open({ token: "correct horse" });
    await page.getByRole("dialog", { name: "This control plane wants a token" }).waitFor();
    await page.getByRole("textbox", { name: "Token" }).fill("wrong");
    await page.keyboard.press("Enter");
    await page.getByText("That token was refused.").waitFor();
    await page.getByRole("textbox", { name: "Token" }).fill("correct horse");
    await page.getByRole("button", { name: "Connect" }).click();
    await live(page);
    const stored = () => page.evaluate(() => [sessionStorage.length, localStorage.length, document.cookie]);
    expect(await stored()).toEqual([1, 0, ""]);
    await page.reload();
    await live(page);
  });

  test("a token in the address is taken, and taken out of it", async () => {
    const { page, fake } = await open({ token: "correct-horse" });
    await page.goto(`${fake.url}/#token=correct-horse`);
    await page.reload();
    await live(page);
    expect(page.url()).not.toContain("correct");
  });
});
