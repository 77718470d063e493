import { PolicyDocument, presets } from "@triattn/protocol";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { loadVectors } from "../../protocol/test/vectors.ts";
import { ConfigError, parsePolicy, policyFromReference, preset } from "../src/index.ts";
import { PolicyStore } from "../src/policy-store.ts";

const document = { name: "mine", terms: [{ kind: "random" }] } as const;

function caught(run: () => unknown): ConfigError {
  try {
    run();
  } catch (error) {
    if (error instanceof ConfigError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}

describe("parsePolicy", () => {
  test("completes presets and partial documents", () => {
    expect(parsePolicy("blend")).toStrictEqual(PolicyDocument.parse(presets.blend));
    expect(parsePolicy({ ...document, pin: { sinks: 1 } }).pin).toStrictEqual({
      prompt: true,
      sinks: 1,
      window: 128,
    });
  });

  const bad: [unknown, string, unknown][] = [
    ["nope", "policy", "nope"],
    ["constructor", "policy", "constructor"],
    [{ ...document, budget: -1 }, "policy.budget", -1],
    [{ ...document, budget: 100 }, "policy.budget", 100],
    [{ ...document, terms: [{ kind: "trig", weight: "a" }] }, "policy.terms.0.weight", "a"],
    [{ ...document, pin: { sinks: 0.5 } }, "policy.pin.sinks", 0.5],
    [{ name: "a" }, "policy.terms", "missing"],
    [{ ...document, reserve: { share: 0.5, terms: document.terms } }, "policy.normalize", "missing"],
    [
      { ...document, normalize: "each", reserve: { share: 2, terms: document.terms } },
      "policy.reserve.share",
      2,
    ],
    [{ ...document, terms: [{ kind: "accumulated", window: 8 }], interval: 9 }, "policy.interval", 9],
    [{ ...document, name: "a\n" }, "policy.name", "a\n"],
    [null, "policy", null],
  ];
  for (const [input, field, value] of bad) {
    test(`refuses ${JSON.stringify(input)}`, () => {
      const error = caught(() => parsePolicy(input as never));
      expect(error).toMatchObject({ name: "ConfigError", field, value });
      expect(error.message).toContain(error.remedy);
      expect(error.message.startsWith(`${field} = `)).toBe(true);
    });
  }

  test("names an unknown key", () => {
    expect(caught(() => parsePolicy({ ...document, budgets: 1 } as never)).message).toContain("budgets");
  });
});

describe("reference variables", () => {
  interface Case {
    readonly name: string;
    readonly environment: Record<string, string>;
    readonly policy: unknown;
    readonly statistics: string | null;
    readonly warnings: string[];
    readonly error?: string;
  }
  for (const vector of loadVectors<Case>("reference_env")) {
    test(vector.name, () => {
      if (vector.error !== undefined) {
        expect(caught(() => policyFromReference(vector.environment)).field).toBe(vector.error);
        return;
      }
      const settings = policyFromReference(vector.environment);
      expect(settings?.policy ?? null).toStrictEqual(vector.policy);
      expect(settings?.statistics ?? null).toBe(vector.statistics);
      expect(settings?.warnings ?? []).toStrictEqual(vector.warnings);
    });
  }
});

describe("PolicyStore", () => {
  test("revisions only grow, and a rollback is a new one with the old content", () => {
    const action = fc.oneof(
      fc.record({ kind: fc.constant("replace" as const), seed: fc.nat(1000) }),
      fc.record({ kind: fc.constant("rollback" as const), to: fc.nat(20) }),
      fc.record({ kind: fc.constant("raise" as const), revision: fc.nat(40) }),
    );
    fc.assert(
      fc.property(fc.array(action, { maxLength: 30 }), (actions) => {
        const store = new PolicyStore();
        const history = [store.current];
        for (const step of actions) {
          const before = store.last;
          const content = store.current;
          if (step.kind === "replace") {
            const made = store.replace({
              policy: { ...preset("random"), seed: step.seed },
              statistics: null,
              rules: [],
            });
            expect(made.policy.seed).toBe(step.seed);
            expect(made.revision).toBe(before + 1);
          } else if (step.kind === "rollback") {
            const target = history[step.to % history.length];
            expect(store.rollback(target)?.policy).toStrictEqual(target?.policy);
          } else {
            const renumbered = store.raise(step.revision);
            expect(renumbered).toBe(content !== undefined && step.revision >= before);
            expect(store.current?.policy).toStrictEqual(content?.policy);
            if (renumbered) expect(store.current?.revision).toBe(step.revision + 1);
          }
          expect(store.last).toBeGreaterThanOrEqual(before);
          expect(store.current === undefined || store.current.revision <= store.last).toBe(true);
          history.push(store.current);
        }
      }),
    );
  });

  test("a policy in force cannot be changed", () => {
    const mine = preset("blend");
    const { policy } = new PolicyStore().replace({ policy: mine, statistics: null, rules: [] });
    mine.pin.sinks = 99;
    expect(policy.pin.sinks).toBe(4);
    expect(() => {
      policy.pin.sinks = 5;
    }).toThrow(TypeError);
  });
});
