import { encode } from "@triattn/protocol";
import { expect, onTestFinished, test } from "vitest";
import { FakeEngine, hello } from "./fake-engine.ts";
import { eventually, ofType, record, recorder, startPlane } from "./helpers.ts";

const skip = (step: number) => ({ kind: "skip", step, request: "r", reason: "x" });
const batch = (first: number | bigint, count: number) => ({
  type: "events",
  first,
  events: Array.from({ length: count }, (_, index) => skip(index)),
});

test("events keep their numbers, gaps are reported, repetitions are dropped", async () => {
  const plane = await startPlane();
  const events = record(plane);
  await using engine = new FakeEngine(plane.endpoint, { nextEvent: 2n ** 60n });
  await engine.greet();
  const base = 2n ** 60n;
  await engine.send(batch(base, 3));
  await engine.send(batch(base + 1n, 3)); // two of them seen
  await engine.send(batch(base + 10n, 2)); // 4 … 9 lost
  await engine.send({ type: "heartbeat", revision: 0, nextEvent: base + 15n }); // 12 … 14 lost
  await eventually(() => ofType(events, "gap").length === 2);
  expect(ofType(events, "event").map(({ number }) => number - base)).toStrictEqual([
    0n,
    1n,
    2n,
    3n,
    10n,
    11n,
  ]);
  expect(ofType(events, "gap").map(({ first, count }) => [first - base, count])).toStrictEqual([
    [4n, 6n],
    [12n, 3n],
  ]);
  expect(plane.engines()[0]).toMatchObject({ eventsLost: 9n, nextEvent: base + 15n });
  expect(plane.counters().link).toMatchObject({ eventsReceived: 6n, eventsLost: 9n });
});

test("counters: the newest, 64 bits wide", async () => {
  const plane = await startPlane();
  await using engine = new FakeEngine(plane.endpoint);
  await engine.greet();
  const names =
    "step tokensGenerated requestsFinished preemptions rounds tokensEvicted blocksReclaimed roundsSkipped roundBatches eventsDropped";
  const big = Object.fromEntries(names.split(" ").map((name) => [name, 2n ** 61n]));
  const small = {
    running: 1,
    waiting: 2,
    residentTokens: 3,
    peakResidentTokens: 4,
    usedBlocks: 5,
    peakUsedBlocks: 6,
    planSeconds: 0.25,
    roundSeconds: 1.5,
    stallSeconds: 1.75,
  };
  await engine.send({ type: "counters", counters: { ...big, ...small } });
  await eventually(() => plane.counters().engines["engine-1"] !== undefined);
  expect(plane.counters().engines["engine-1"]).toStrictEqual({ ...big, ...small });
});

test("an engine that reconnects is the same engine, and gets only what it lacks", async () => {
  const plane = await startPlane({ policy: "random" });
  const events = record(plane);
  const first = new FakeEngine(plane.endpoint);
  await first.greet();
  await first.acknowledge(1n);
  await first.send(batch(0, 2));
  await eventually(() => ofType(events, "event").length === 2);
  first.close();
  await eventually(() => plane.engines()[0]?.connected === false);

  await using again = new FakeEngine(plane.endpoint);
  await again.greet({ revision: 1, nextEvent: 5n });
  await eventually(() => ofType(events, "connected").length === 2);
  expect(ofType(events, "gap")).toMatchObject([{ first: 2n, count: 3n }]);
  expect(plane.policy?.revision).toBe(1);
  expect(plane.engines()).toHaveLength(1);
});

test("an engine that served under another control plane gets this one's policy under a higher number", async () => {
  const plane = await startPlane({ policy: "random" });
  await using native = new FakeEngine(plane.endpoint, { engineId: "native" });
  await native.greet();
  await native.acknowledge(1n);
  await using engine = new FakeEngine(plane.endpoint);
  await engine.greet({ revision: 7, nextEvent: 1000n });
  expect(await engine.acknowledge(80n)).toMatchObject({ revision: 8, policy: { name: "random" } });
  expect((await native.acknowledge(81n)).revision).toBe(8);
  await eventually(() => plane.engines().every(({ revision }) => revision === 8));
  expect(plane.policy?.revision).toBe(8);
  expect(plane.counters().link.eventsLost).toBe(0n);
});

test("a peer that has not said hello is asked to", async () => {
  const plane = await startPlane();
  await using engine = new FakeEngine(plane.endpoint);
  await engine.send(batch(0, 1));
  await engine.next("identify");
  await engine.greet({ nextEvent: 1n });
  await eventually(() => plane.engines().length === 1);
  expect(plane.counters().link.framesDropped.unknown).toBe(1);
});

test("goodbye, and silence", async () => {
  const plane = await startPlane({ silenceMs: 300 });
  const events = record(plane);
  await using leaving = new FakeEngine(plane.endpoint, { engineId: "leaving" });
  await leaving.greet();
  await leaving.send({ type: "bye", reason: "shutdown" });
  await using quiet = new FakeEngine(plane.endpoint, { engineId: "quiet" });
  await quiet.greet();
  await eventually(() => ofType(events, "disconnected").length === 2);
  expect(ofType(events, "disconnected").map(({ engineId, reason }) => [engineId, reason])).toStrictEqual([
    ["leaving", "shutdown"],
    ["quiet", "silent for 300 ms"],
  ]);
});

test("a second process under an id in use is rejected; when the first is gone it is taken", async () => {
  const plane = await startPlane();
  const first = new FakeEngine(plane.endpoint);
  await first.greet();
  await eventually(() => plane.engines().length === 1);
  await using second = new FakeEngine(plane.endpoint, { engine: { ...hello.engine, pid: 2 } });
  await second.greet();
  expect((await second.next("rejected")).message).toContain("engine-1");
  expect(plane.engines()[0]?.hello.engine.pid).toBe(1);
  first.close();
  await eventually(() => plane.engines()[0]?.connected === false);
  await second.greet();
  await eventually(() => plane.engines()[0]?.hello.engine.pid === 2);
  expect(plane.counters().link.framesDropped.duplicate).toBe(1);
});

test("the same process on a new connection is taken at once", async () => {
  const plane = await startPlane({ policy: "random" });
  await using first = new FakeEngine(plane.endpoint);
  await first.greet();
  await first.next("policy");
  await using second = new FakeEngine(plane.endpoint);
  await second.greet();
  await second.acknowledge(4n);
  await eventually(() => plane.engines()[0]?.step === 4n);
  expect(plane.engines()).toHaveLength(1);
});

test("a connection is one engine at a time", async () => {
  const plane = await startPlane();
  await using engine = new FakeEngine(plane.endpoint);
  await engine.greet({ engineId: "first" });
  await engine.greet({ engineId: "second" });
  await eventually(() => plane.engines().length === 2);
  expect(plane.engines().map(({ engineId, connected }) => [engineId, connected])).toStrictEqual([
    ["first", false],
    ["second", true],
  ]);
});

test("another protocol version is rejected in words", async () => {
  const plane = await startPlane();
  await using engine = new FakeEngine(plane.endpoint);
  await engine.greet({ protocol: 2 });
  expect((await engine.next("rejected")).message).toContain("speaks protocol 1");
  expect(plane.engines()).toHaveLength(0);
  expect(plane.counters().link.framesDropped.version).toBe(1);
});

test("bad frames are counted by kind, logged once a kind, and change nothing", async () => {
  const { logger, lines } = recorder();
  const plane = await startPlane({ logger });
  await using engine = new FakeEngine(plane.endpoint);
  await engine.greet();
  for (let repeat = 0; repeat < 5; repeat++) {
    await engine.socket.send([encode({ type: "bye", reason: "" }), "more"]);
    await engine.socket.send(Buffer.alloc((1 << 20) + 1));
    await engine.socket.send(Buffer.from("c1", "hex"));
    await engine.send({ type: "ack", revision: 1, step: -1 });
    await engine.send({ type: "events", first: 0, events: Array(4097).fill(skip(1)) });
  }
  await eventually(() => plane.counters().link.framesReceived === 26);
  const { framesDropped } = plane.counters().link;
  expect(framesDropped).toMatchObject({ framing: 5, oversized: 5, malformed: 5, invalid: 10, unknown: 0 });
  expect(
    lines
      .map(({ kind }) => kind)
      .filter(Boolean)
      .sort(),
  ).toStrictEqual(["framing", "invalid", "malformed", "oversized"]);
  expect(plane.engines()).toMatchObject([{ engineId: "engine-1", connected: true }]);
});

test("a consumer that is too slow loses the oldest, and is told how many", async () => {
  const plane = await startPlane({ eventCapacity: 100 });
  const slow = plane.events();
  await using engine = new FakeEngine(plane.endpoint);
  await engine.greet();
  await engine.send(batch(0, 1000));
  await eventually(() => plane.counters().link.eventsReceived === 1000n);
  expect(await slow.next()).toMatchObject({ value: { type: "overflow", dropped: 901 } });
  expect(await slow.next()).toMatchObject({ value: { type: "event", number: 900n } });
  expect(plane.counters().link.itemsOverflowed).toBe(901);
  await slow.return?.();
});

test("an engine that does not read holds nobody up, and gets the newest policy when it does", async () => {
  const plane = await startPlane({ ackTimeoutMs: 5 });
  const deaf = new FakeEngine(plane.endpoint, { engineId: "deaf" }, undefined, true);
  onTestFinished(() => deaf.close());
  await deaf.greet();
  await eventually(() => plane.engines().length === 1);
  const policy = { name: "x", terms: [{ kind: "random" as const }] };
  const begun = performance.now();
  for (let revision = 1; revision <= 100; revision++) {
    // Larger than all buffers on the way, in total.
    await plane.setPolicy({ ...policy, seed: revision }, { statistics: "x".repeat(200_000) }).catch(() => {});
  }
  expect(performance.now() - begun).toBeLessThan(5000);
  void deaf.listen();
  let newest = 0;
  let count = 0;
  for (; newest < 100; count++) newest = (await deaf.next("policy")).revision;
  expect(count).toBeLessThan(100);
});
