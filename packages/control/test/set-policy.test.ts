import { expect, test } from "vitest";
import {
  ConfigError,
  ControlPlaneClosed,
  EngineTimeout,
  PolicyRefused,
  PolicyUnacknowledged,
} from "../src/index.ts";
import { FakeEngine } from "./fake-engine.ts";
import { eventually, ofType, record, startPlane } from "./helpers.ts";

const policy = (budget: number) => ({ name: "mine", terms: [{ kind: "random" as const }], budget });

async function withEngines(count: number) {
  const plane = await startPlane({ policy: "random", statistics: "/s", ackTimeoutMs: 5000 });
  const engines: FakeEngine[] = [];
  for (let index = 0; index < count; index++) {
    const engine = new FakeEngine(plane.endpoint, { engineId: `e${index}` });
    engines.push(engine);
    await engine.greet();
    await engine.acknowledge(1n);
  }
  await eventually(() => plane.engines().filter(({ step }) => step === 1n).length === count);
  return { plane, engines };
}

test("without engines a policy is in force at once", async () => {
  const plane = await startPlane();
  expect(plane.policy).toBeUndefined();
  expect(await plane.setPolicy("keydiff")).toStrictEqual({ revision: 1, engines: [] });
  expect(plane.policy).toMatchObject({ revision: 1, policy: { name: "keydiff" }, statistics: null });
});

test("resolves when every engine has said at which step", async () => {
  const { plane, engines } = await withEngines(3);
  const result = plane.setPolicy(policy(512));
  const sent = await Promise.all(
    engines.map((engine, index) => engine.acknowledge(2n ** 60n + BigInt(index))),
  );
  for (const message of sent)
    expect(message).toMatchObject({ revision: 2, statistics: "/s", policy: { budget: 512 } });
  const { revision, engines: steps } = await result;
  expect(revision).toBe(2);
  expect(steps.toSorted((a, b) => a.engineId.localeCompare(b.engineId))).toStrictEqual([
    { engineId: "e0", step: 2n ** 60n },
    { engineId: "e1", step: 2n ** 60n + 1n },
    { engineId: "e2", step: 2n ** 60n + 2n },
  ]);
});

test("an engine that refuses puts all engines back", async () => {
  const { plane, engines } = await withEngines(2);
  const [willing, unable] = engines as [FakeEngine, FakeEngine];
  const events = record(plane);
  const result = plane.setPolicy(policy(200), { statistics: null }).catch((error: unknown) => error);
  await willing.acknowledge(5n);
  await unable.refuse();
  for (const engine of engines) {
    const restored = await engine.acknowledge(6n);
    expect(restored).toMatchObject({
      revision: 3,
      policy: { name: "random", budget: 2048 },
      statistics: "/s",
    });
  }
  const error = await result;
  expect(error).toBeInstanceOf(PolicyRefused);
  expect(error).toMatchObject({
    engineId: "e1",
    revision: 2,
    field: "policy.budget",
    value: "200",
    remedy: "at least 256",
    reason: "smaller than window + block",
  });
  expect(plane.policy).toMatchObject({ revision: 3, policy: { name: "random" } });
  expect(ofType(events, "policy").map(({ revision }) => revision)).toStrictEqual([2, 3]);
  expect(ofType(events, "refused")).toHaveLength(1);
});

test("a document that is wrong changes nothing and reaches nobody", async () => {
  const { plane, engines } = await withEngines(1);
  await expect(plane.setPolicy(policy(-1))).rejects.toBeInstanceOf(ConfigError);
  expect(plane.policy?.revision).toBe(1);
  expect(engines[0]?.received.filter(({ type }) => type === "policy")).toHaveLength(1);
});

test("calls take effect in order", async () => {
  const { plane, engines } = await withEngines(1);
  const results = [300, 400, 500].map((budget) => plane.setPolicy(policy(budget)));
  for (const budget of [300, 400, 500]) {
    expect((await engines[0]?.acknowledge(BigInt(budget)))?.policy.budget).toBe(budget);
  }
  expect((await Promise.all(results)).map(({ revision }) => revision)).toStrictEqual([2, 3, 4]);
});

test("an engine that does not answer is named; the policy stays", async () => {
  const plane = await startPlane({ ackTimeoutMs: 100 });
  await using engine = new FakeEngine(plane.endpoint);
  await engine.greet();
  await eventually(() => plane.engines().length === 1);
  const error = await plane.setPolicy(policy(512)).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(PolicyUnacknowledged);
  expect(error).toMatchObject({ revision: 1, engineIds: ["engine-1"] });
  expect(plane.policy?.revision).toBe(1);
  await engine.acknowledge(9n);
  await eventually(() => plane.engines()[0]?.revision === 1);
});

test("an engine that dies is not waited for", async () => {
  const { plane, engines } = await withEngines(2);
  const begun = performance.now();
  const result = plane.setPolicy(policy(512));
  await engines[0]?.next("policy");
  engines[0]?.close();
  await engines[1]?.acknowledge(3n);
  expect((await result).engines).toStrictEqual([{ engineId: "e1", step: 3n }]);
  expect(performance.now() - begun).toBeLessThan(2000);
  expect(plane.engines().find(({ engineId }) => engineId === "e0")?.connected).toBe(false);
});

test("an engine that comes while a policy is rolled out is waited for", async () => {
  const { plane, engines } = await withEngines(1);
  const result = plane.setPolicy(policy(512));
  await engines[0]?.next("policy");
  await using late = new FakeEngine(plane.endpoint, { engineId: "late" });
  await late.greet();
  await late.acknowledge(1n);
  await eventually(() => plane.engines().some(({ engineId, step }) => engineId === "late" && step === 1n));
  await engines[0]?.send({ type: "ack", revision: 2, step: 8 });
  expect((await result).engines).toHaveLength(2);
});

test("waitForEngine", async () => {
  const plane = await startPlane({ policy: "random" });
  await expect(plane.waitForEngine({ timeoutMs: 30 })).rejects.toBeInstanceOf(EngineTimeout);
  const waiting = plane.waitForEngine({ timeoutMs: 5000 });
  await using engine = new FakeEngine(plane.endpoint);
  await engine.greet();
  await engine.acknowledge(1n);
  expect(await waiting).toMatchObject({ engineId: "engine-1", connected: true, revision: 1, step: 1n });
  expect((await plane.waitForEngine()).engineId).toBe("engine-1");
});

test("waitForEngine says why the first engine cannot start", async () => {
  const plane = await startPlane({ policy: "random" });
  const waiting = plane.waitForEngine().catch((error: unknown) => error);
  await using engine = new FakeEngine(plane.endpoint);
  await engine.greet();
  await engine.refuse();
  expect(await waiting).toMatchObject({ name: "PolicyRefused", remedy: "at least 256" });
});

test("close ends everything that waits", async () => {
  const { plane } = await withEngines(1);
  const events = record(plane);
  const pending = [plane.setPolicy(policy(512)), plane.setPolicy(policy(600))];
  const settled = Promise.allSettled(pending);
  const waiting = plane.waitForEngine({ timeoutMs: 5000 }).catch((error: unknown) => error);
  await eventually(() => ofType(events, "policy").length === 1);
  await plane.close();
  for (const result of await settled) {
    expect(result).toMatchObject({ status: "rejected", reason: { name: "ControlPlaneClosed" } });
  }
  expect(await waiting).toBeDefined();
  await expect(plane.waitForEngine()).rejects.toBeInstanceOf(ControlPlaneClosed);
  expect((await plane.events().next()).done).toBe(true);
});
