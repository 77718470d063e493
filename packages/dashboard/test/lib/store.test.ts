import type { ApiEvent } from "@triattn/protocol";
import { expect, test } from "vitest";
import {
  events,
  eventsSkipped,
  fullKv,
  rounds,
  rows,
  state,
  take,
  telemetry,
  totals,
} from "../../src/state/store.ts";
import { Simulation } from "../fake/simulation.ts";

const event = (id: number, time: string): ApiEvent => ({
  id,
  time,
  engineId: "e",
  kind: "skip",
  request: "r",
  data: { reason: "no free block", step: 1 },
});

test("events come once, in order; a new control plane's start the log anew", () => {
  take("events", [event(1, "2026-01-01T00:00:01Z"), event(2, "2026-01-01T00:00:02Z")]);
  take("events", [event(2, "2026-01-01T00:00:02Z"), event(3, "2026-01-01T00:00:03Z")]);
  expect(events.value.map(({ id }) => id)).toEqual([1, 2, 3]);
  take("events", [event(9, "2026-01-01T00:00:04Z")]);
  expect(eventsSkipped.value).toBe(5);
  take("events", [event(1, "2026-01-01T00:01:00Z")]);
  expect(events.value.map(({ time }) => time)).toEqual(["2026-01-01T00:01:00Z"]);
});

test("totals, full KV and rates follow from what the engines report", () => {
  const simulation = new Simulation({ requests: 50, budget: 256 }, Date.parse("2026-01-01T00:00:00Z"));
  for (let i = 0; i < 20; i++) {
    simulation.advance(0.5);
    const engine = simulation.engine();
    take("requests", { engineId: engine.engineId, step: 1, requests: simulation.requests(), omitted: 0 });
    take("state", {
      version: "0",
      time: new Date(simulation.time).toISOString(),
      policy: simulation.policy,
      engines: [engine],
      controller: null,
    });
    take("events", simulation.takeEvents());
  }
  const engine = simulation.engine();
  expect(rows.value).toHaveLength(50);
  expect(totals.value.resident).toBe(engine.counters?.residentTokens);
  const running = simulation.requests().filter((one) => one.state === "running");
  expect(fullKv.value).toBe(running.reduce((sum, one) => sum + one.computed, 0));
  expect(telemetry.rates([engine.engineId]).rounds).toBeGreaterThan(0);
  expect(telemetry.all.times).toHaveLength(20);
  expect(telemetry.all.columns.fullKv.at(-1)).toBe(fullKv.value);
  const busy = running.find((one) => rounds.get(`${engine.engineId}/${one.request}`).length > 0);
  expect(busy?.evictedTotal).toBe(rounds.get(`${engine.engineId}/${busy?.request}`).at(-1)?.evictedTotal);

  // An engine that has gone reports no requests any more.
  const last = state.value;
  if (last === null) throw new Error("there is a state");
  take("state", { ...last, engines: [{ ...engine, connected: false }] });
  expect(rows.value).toHaveLength(0);
  expect(totals.value.running).toBe(0);
});
