import fc from "fast-check";
import { expect, test } from "vitest";
import { MAX_CONNECTED } from "../src/engines.ts";
import { FloodGate } from "../src/flood.ts";
import { FakeEngine } from "./fake-engine.ts";
import { eventually, startPlane } from "./helpers.ts";

test("never more than the burst and the rate let through, never less than the rate", () => {
  const step = fc.record({ wait: fc.nat(3000), bytes: fc.nat(300) });
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 300 }), (steps) => {
      const gate = new FloodGate({ framesPerSecond: 5, bytesPerSecond: 500 });
      let [now, frames, bytes] = [1000, 0, 0];
      for (const { wait, bytes: size } of steps) {
        now += wait;
        if (gate.admit("a", size, now)) [frames, bytes] = [frames + 1, bytes + size];
        // Another connection is not touched by it.
        expect(gate.admit(`b${now}${frames}`, size, now)).toBe(true);
      }
      const seconds = (now - 1000) / 1000;
      expect(frames).toBeLessThanOrEqual(5 * 8 + 5 * seconds + 1e-6);
      expect(bytes).toBeLessThanOrEqual(500 * 8 + 500 * seconds + 1e-6);
    }),
  );
  const steady = new FloodGate({ framesPerSecond: 5 });
  for (let i = 0; i < 1000; i++) expect(steady.admit("a", 10, i * 200)).toBe(true);
});

test("connections that come and go are forgotten", () => {
  const gate = new FloodGate();
  for (let i = 0; i < 10_000; i++) gate.admit(`r${i}`, 1, i);
  expect(gate.size).toBe(4096);
});

test("an engine that floods is cut short, and counted; another is heard as ever", async () => {
  const plane = await startPlane({ policy: "random", limits: { framesPerSecond: 10 } });
  await using loud = new FakeEngine(plane.endpoint, { engineId: "loud" });
  await using calm = new FakeEngine(plane.endpoint, { engineId: "calm" });
  await loud.greet();
  await loud.acknowledge(1n);
  for (let i = 0; i < 500; i++) await loud.send({ type: "heartbeat", revision: 1, nextEvent: 0n });
  await calm.greet();
  await calm.acknowledge(5n);
  await eventually(() => plane.engines().some(({ engineId, step }) => engineId === "calm" && step === 5n));
  await eventually(() => plane.counters().link.framesReceived >= 504);
  const { flooding } = plane.counters().link.framesDropped;
  expect(flooding).toBeGreaterThan(300);
  expect(flooding).toBeLessThan(500);
  expect(plane.engines().every(({ connected }) => connected)).toBe(true);
});

test("only so many engines connect", async () => {
  const plane = await startPlane();
  const engines = Array.from(
    { length: MAX_CONNECTED },
    (_, i) => new FakeEngine(plane.endpoint, { engineId: `e${i}` }),
  );
  for (const engine of engines) await engine.greet();
  await eventually(() => plane.engines().length === MAX_CONNECTED);
  await using late = new FakeEngine(plane.endpoint, { engineId: "late" });
  await late.greet();
  expect((await late.next("rejected")).message).toContain("256 engines are connected");
  expect(plane.counters().link.framesDropped.crowded).toBe(1);
  for (const engine of engines) engine.close();
});
