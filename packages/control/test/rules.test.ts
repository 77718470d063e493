import type { Rule } from "@triattn/protocol";
import { describe, expect, test } from "vitest";
import { ConfigError, PolicyRefused, preset } from "../src/index.ts";
import { engineRules, matchesModel, parseRules } from "../src/rules.ts";
import { FakeEngine, hello } from "./fake-engine.ts";
import { eventually, startPlane } from "./helpers.ts";

const policy = preset("random");

describe("what is refused", () => {
  const cases: [what: string, rules: unknown, field: string, remedy: RegExp][] = [
    ["not a list", {}, "rules", /array/],
    ["a name with capitals", [{ name: "Fast", match: {}, budget: 512 }], "rules.0.name", /lower-case/],
    ["no match", [{ name: "a", budget: 512 }], "rules.0.match", /object/],
    ["an unknown key", [{ name: "a", match: { user: "x" }, budget: 512 }], "rules.0.match", /user/],
    ["a budget with a fraction", [{ name: "a", match: {}, budget: 1.5 }], "rules.0.budget", /whole number/],
    [
      "a budget below what is pinned",
      [{ name: "a", match: {}, budget: 100 }],
      "rules.0.budget",
      /at least .* 132/,
    ],
    ["nothing to do", [{ name: "a", match: {} }], "rules.0", /a budget, a policy, or both/],
    [
      "a range upside down",
      [{ name: "a", match: { priority: { min: 2, max: 1 } }, budget: 512 }],
      "rules.0.match.priority",
      /min at most max/,
    ],
    [
      "a name twice",
      [
        { name: "a", match: {}, budget: 512 },
        { name: "a", match: {}, budget: 600 },
      ],
      "rules.1.name",
      /taken/,
    ],
    ["no such preset", [{ name: "a", match: {}, policy: "magic" }], "rules.0.policy", /one of auto, blend/],
    [
      "a policy of its own that is wrong",
      [{ name: "a", match: {}, policy: { name: "x", terms: [{ kind: "random", weight: "1" }] } }],
      "rules.0.policy.terms.0.weight",
      /number/,
    ],
    [
      "a budget below what its own policy pins",
      [{ name: "a", match: {}, budget: 150, policy: { ...policy, pin: { window: 200 } } }],
      "rules.0.budget",
      /204/,
    ],
    [
      "too many",
      Array.from({ length: 65 }, (_, i) => ({ name: `r${i}`, match: {}, budget: 512 })),
      "rules",
      /at most 64/,
    ],
    [
      "too many policies",
      Array.from({ length: 9 }, (_, i) => ({ name: `r${i}`, match: {}, policy: { ...policy, seed: i } })),
      "rules",
      /at most 8/,
    ],
  ];
  test.each(cases)("%s", (_what, rules, field, remedy) => {
    const attempt = () => parseRules(rules as Rule[], policy);
    expect(attempt).toThrow(ConfigError);
    expect(attempt).toThrow(expect.objectContaining({ field, remedy: expect.stringMatching(remedy) }));
  });
});

test("policies are written out, and shared where they are the same", () => {
  const rules = parseRules(
    [
      { name: "batch", match: { priority: { min: 10 } }, policy: "streaming" },
      { name: "vip", match: { tags: ["vip", "eu"], priority: { max: -1 } }, budget: 0 },
      { name: "long", match: { tags: ["long"] }, budget: 4096, policy: "streaming" },
    ],
    policy,
  );
  expect(rules[0]?.policy).toStrictEqual(preset("streaming"));
  expect("budget" in (rules[0] ?? {})).toBe(false);
  expect(engineRules(rules, "m")).toStrictEqual({
    rules: [
      { name: "batch", minPriority: 10, maxPriority: null, tags: [], budget: null, policy: 0 },
      { name: "vip", minPriority: null, maxPriority: -1, tags: ["vip", "eu"], budget: 0, policy: null },
      { name: "long", minPriority: null, maxPriority: null, tags: ["long"], budget: 4096, policy: 0 },
    ],
    policies: [preset("streaming")],
  });
});

test.each([
  ["Qwen/Qwen3-8B", "Qwen/Qwen3-8B", true],
  ["qwen/Qwen3-8B", "Qwen/Qwen3-8B", false],
  ["Qwen/*", "Qwen/Qwen3-8B", true],
  ["*8B", "Qwen/Qwen3-8B", true],
  ["*", "anything at all", true],
  ["Qwen3-8B", "Qwen/Qwen3-8B", true],
  ["Qwen3-8B", "/models/Qwen3-8B/", true],
  ["Qwen3", "Qwen/Qwen3-8B", false],
  ["*3*", "Qwen/Qwen3-8B", true],
  ["*4*", "Qwen/Qwen3-8B", false],
  ["a.c", "abc", false],
])("pattern %s on model %s: %s", (pattern, model, matches) => {
  expect(matchesModel(pattern, model)).toBe(matches);
});

test("a hostile pattern takes no time", () => {
  const begun = performance.now();
  expect(matchesModel(`${"*a".repeat(120)}b`, "a".repeat(100_000))).toBe(false);
  expect(performance.now() - begun).toBeLessThan(2000);
});

test("each engine gets the rules of its model; a refusal takes rules back, too", async () => {
  const plane = await startPlane({ policy: "random", rules: [{ name: "all", match: {}, budget: 1024 }] });
  const one = new FakeEngine(plane.endpoint, { engineId: "one", model: { ...hello.model, name: "org/one" } });
  const two = new FakeEngine(plane.endpoint, { engineId: "two", model: { ...hello.model, name: "org/two" } });
  await using _one = one;
  await using _two = two;
  for (const engine of [one, two]) {
    await engine.greet();
    expect((await engine.acknowledge(1n)).rules).toMatchObject([{ name: "all", budget: 1024 }]);
  }
  await eventually(() => plane.engines().every(({ step }) => step === 1n) && plane.engines().length === 2);

  const rules: Rule[] = [
    { name: "first", match: { model: "org/one" }, budget: 512 },
    { name: "second", match: { model: "two" }, policy: "keydiff" },
  ];
  const result = plane.setPolicy("random", { rules });
  expect(await one.acknowledge(2n)).toMatchObject({ rules: [{ name: "first", budget: 512 }], policies: [] });
  expect(await two.acknowledge(2n)).toMatchObject({
    rules: [{ name: "second", budget: null, policy: 0 }],
    policies: [{ name: "keydiff" }],
  });
  expect((await result).revision).toBe(2);

  // Rules stay when only the policy changes, and are checked against the new one.
  const wide = { ...policy, pin: { window: 600 } };
  await expect(plane.setPolicy(wide)).rejects.toMatchObject({ field: "rules.0.budget" });
  expect(plane.policy?.revision).toBe(2);

  const refused = plane.setPolicy("random", { rules: [] }).catch((error: unknown) => error);
  expect((await one.acknowledge(3n)).rules).toStrictEqual([]);
  expect((await two.refuse()).rules).toStrictEqual([]);
  expect((await one.acknowledge(4n)).rules).toMatchObject([{ name: "first" }]);
  expect((await two.acknowledge(4n)).rules).toMatchObject([{ name: "second" }]);
  expect(await refused).toBeInstanceOf(PolicyRefused);
  expect(plane.policy).toMatchObject({ revision: 4, rules: [{ name: "first" }, { name: "second" }] });
  expect(plane.history().map(({ revision }) => revision)).toStrictEqual([1, 2, 4]);

  const back = plane.rollback(1);
  for (const engine of [one, two])
    expect((await engine.acknowledge(5n)).rules).toMatchObject([{ name: "all" }]);
  expect((await back).revision).toBe(5);
  await expect(plane.rollback(77)).rejects.toMatchObject({
    field: "revision",
    remedy: "one of those remembered: 1, 2, 4, 5",
  });
});
