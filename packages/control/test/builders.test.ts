import fc from "fast-check";
import { expect, test } from "vitest";
import { ConfigError, parsePolicy, parseRules, policy, preset, requestOptions, rule } from "../src/index.ts";

test("a policy, step by step, is the document written by hand", () => {
  const built = policy("mine")
    .budget(1024)
    .interval(64)
    .term("keydiff", { weight: 2 })
    .term("trig", { offsets: "max" })
    .pin({ window: 64 })
    .pin({ prompt: false })
    .set({ normalize: "each", selection: "union", seed: 7 })
    .build();
  expect(built).toStrictEqual(
    parsePolicy({
      name: "mine",
      budget: 1024,
      interval: 64,
      terms: [
        { kind: "keydiff", weight: 2 },
        { kind: "trig", offsets: "max" },
      ],
      pin: { window: 64, prompt: false },
      normalize: "each",
      selection: "union",
      seed: 7,
    }),
  );
});

test("from a preset or another policy", () => {
  expect(policy("triattention", "triattention").build()).toStrictEqual(preset("triattention"));
  const mine = policy("mine", "streaming").budget(4096).build();
  expect(mine).toStrictEqual({ ...preset("streaming"), name: "mine", budget: 4096 });
  expect(policy("again", mine).term("random").build().terms).toHaveLength(2);
  // @ts-expect-error: not a preset
  expect(() => policy("mine", "magic")).toThrow(ConfigError);
});

test("a builder is not changed by what is made from it", () => {
  const base = policy("base").term("recency");
  const wide = base.budget(8192);
  base.term("random");
  expect(base.build()).toMatchObject({ budget: 2048, terms: [{ kind: "recency" }] });
  expect(wide.build().budget).toBe(8192);
});

test("what cannot be is refused where it is built", () => {
  expect(() => policy("Mine").term("random").build()).toThrow(/policy\.name/);
  expect(() => policy("mine").term("random").budget(20).build()).toThrow(/policy\.budget = 20: at least/);
});

test("rules", () => {
  const built = [
    rule("vip").tags("vip").tags("eu").budget(0).build(),
    rule("batch").model("Qwen/*").priority({ min: 10 }).budget(512).policy("streaming").build(),
  ];
  expect(built).toStrictEqual([
    { name: "vip", match: { tags: ["vip", "eu"] }, budget: 0 },
    { name: "batch", match: { model: "Qwen/*", priority: { min: 10 } }, budget: 512, policy: "streaming" },
  ]);
  expect(parseRules(built, preset("random"))).toHaveLength(2);
});

test("a request's own options, where each engine reads them", () => {
  expect(requestOptions({ budget: 512, tags: ["batch", "low cost"] })).toStrictEqual({
    vllm_xargs: { triattn_budget: 512, triattn_tags: "batch,low cost" },
  });
  expect(requestOptions({ budget: 0, engine: "sglang" })).toStrictEqual({
    custom_params: { triattn_budget: 0 },
  });
  expect(requestOptions({ engine: "vllm" })).toStrictEqual({ vllm_xargs: {} });
  for (const budget of [-1, 1.5, Number.NaN, 2 ** 25])
    expect(() => requestOptions({ budget })).toThrow(/^budget/);
  for (const tag of ["", "a,b", " a", "a ", "a\nb", "x".repeat(65)]) {
    expect(() => requestOptions({ tags: [tag] })).toThrow(/^tags/);
    expect(() => parseRules([rule("r").tags(tag).budget(0).build()], preset("random"))).toThrow(
      /rules\.0\.match\.tags/,
    );
  }
  expect(() => requestOptions({ tags: Array.from({ length: 17 }, (_, i) => `t${i}`) })).toThrow(/at most 16/);
});

test("tags that a rule may name are those that a request may carry", () => {
  fc.assert(
    fc.property(fc.string({ unit: "grapheme", maxLength: 70 }), (tag) => {
      const possible = (attempt: () => unknown) => {
        try {
          attempt();
          return true;
        } catch {
          return false;
        }
      };
      const named = possible(() => parseRules([rule("r").tags(tag).budget(0).build()], preset("random")));
      expect(possible(() => requestOptions({ tags: [tag] }))).toBe(named);
    }),
  );
});
