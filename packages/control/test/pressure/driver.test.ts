import { expect, test } from "vitest";
import { ConfigError, createControlPlane } from "../../src/index.ts";
import { hello } from "../fake-engine.ts";
import { eventually, silent, startPlane } from "../helpers.ts";
import { counters, joined, startHttp } from "../http/helpers.ts";

const policy = {
  name: "mine",
  terms: [{ kind: "recency" as const }],
  budget: 2048,
  interval: 32,
  pin: { window: 64 },
};
const cache = { ...hello.cache, blocks: 100, blockSize: 32 };
const report = (usedBlocks: number, running = 10) => ({
  type: "counters",
  counters: { ...counters, usedBlocks, running },
});

test("budgets follow the pressure inside their bounds; rules inside theirs", async () => {
  const rules = [
    { name: "long", match: { tags: ["long"] }, budget: 8192 },
    { name: "vip", match: { tags: ["vip"] }, budget: 0 },
  ];
  const pressure = { min: 128, max: 1024, rules: { long: { min: 1024, max: 8192 } } };
  const { plane, url } = await startHttp({}, { policy, rules, pressure });
  expect(plane.pressure).toStrictEqual({ budget: 1024, min: 128, max: 1024, reason: "start" });
  const engine = await joined(plane, { cache });
  await engine.send(report(30));
  const first = await engine.acknowledge(2n);
  expect(first.policy.budget).toBe(1024);
  expect(first.rules.map(({ budget }) => budget)).toStrictEqual([8192, 0]);
  await engine.send(report(99));
  const shrunk = await engine.acknowledge(3n);
  expect(shrunk.policy.budget).toBeLessThan(600);
  expect(shrunk.rules[0]?.budget).toBeLessThan(8 * 600);
  expect(shrunk.rules[1]?.budget).toBe(0);
  for (let step = 4n, last = shrunk.policy.budget; last > 256; step++) {
    await engine.send(report(99));
    last = (await engine.acknowledge(step)).policy.budget;
  }
  expect(plane.pressure).toMatchObject({ reason: "cache full" });
  const state = (await (await fetch(`${url}/api/state`)).json()) as { controller: object };
  expect(state.controller).toStrictEqual(plane.pressure);
  // It is one entry of the history, however often it moves.
  expect(plane.history()).toHaveLength(1);
});

test("an engine that refuses a budget stops it; the policy before is in force", async () => {
  const plane = await startPlane({ policy, pressure: { min: 96, max: 2048 } });
  const engine = await joined(plane, { cache });
  await engine.send(report(99));
  await engine.refuse();
  await engine.acknowledge(3n);
  await eventually(() => plane.pressure?.reason.startsWith("stopped: ") === true);
  expect(plane.policy?.policy.budget).toBe(2048);
  const sent = engine.received.length;
  await engine.send(report(99));
  await new Promise((wake) => setTimeout(wake, 100));
  expect(engine.received.length).toBe(sent);
});

test("a policy that compresses nothing stays so", async () => {
  const plane = await startPlane({ policy: { ...policy, budget: 0 }, pressure: { min: 96, max: 2048 } });
  const engine = await joined(plane, { cache });
  await engine.send(report(99));
  await new Promise((wake) => setTimeout(wake, 100));
  expect(plane.policy).toMatchObject({ revision: 1, policy: { budget: 0 } });
});

test("bounds that cannot be", async () => {
  for (const [pressure, field] of [
    [{ min: 0, max: 5 }, "pressure.min"],
    [{ min: 200, max: 100 }, "pressure.max"],
    [{ min: 1, max: 2, rules: { a: { min: 1.5, max: 2 } } }, "pressure.rules.a.min"],
  ] as const) {
    const error = await createControlPlane({ policy, pressure, logger: silent }).catch(
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(ConfigError);
    expect(error).toMatchObject({ field });
  }
});
