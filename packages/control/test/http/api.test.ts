import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { eventually, temporaryDirectory } from "../helpers.ts";
import { body, counters, joined, json, Reader, requestState, round, startHttp } from "./helpers.ts";

const get = async (url: string) => body(await fetch(url));

test("GET /api/state", async () => {
  const { plane, url } = await startHttp();
  expect(await get(`${url}/api/state`)).toMatchObject({
    version: expect.stringMatching(/^\d+\.\d+\.\d+/),
    policy: { revision: 1, policy: { name: "random" }, rules: [], statistics: null },
    engines: [],
    controller: null,
  });
  const engine = await joined(plane);
  await engine.send({ type: "counters", counters });
  await eventually(() => plane.engines()[0]?.counters !== undefined);
  const response = await fetch(`${url}/api/state`);
  expect(response.headers.get("cache-control")).toBe("no-store");
  expect((await body(response)).engines).toMatchObject([
    {
      engineId: "engine-1",
      connected: true,
      engine: { name: "vllm" },
      revision: 1,
      step: 1,
      counters: { running: 1, tokensGenerated: String(2n ** 60n), planSeconds: 0.25 },
      tokensPerSecond: 0,
    },
  ]);
});

test("PUT /api/policy: what was acknowledged, by whom; history and rollback", async () => {
  const { plane, url } = await startHttp();
  const engine = await joined(plane);
  const put = fetch(
    `${url}/api/policy`,
    json("PUT", {
      policy: "keydiff",
      rules: [{ name: "vip", match: { tags: ["vip"] }, budget: 0 }],
      statistics: "/s",
    }),
  );
  expect(await engine.acknowledge(9n)).toMatchObject({
    policy: { name: "keydiff" },
    rules: [{ name: "vip", budget: 0 }],
    statistics: "/s",
  });
  const response = await put;
  expect(response.status).toBe(200);
  expect(await body(response)).toStrictEqual({ revision: 2, engines: [{ engineId: "engine-1", step: 9 }] });
  const { revisions } = await get(`${url}/api/policy/history`);
  expect(revisions).toMatchObject([
    { revision: 2, policy: { name: "keydiff" }, rules: [{ name: "vip" }], statistics: "/s" },
    { revision: 1, policy: { name: "random" }, rules: [], statistics: null },
  ]);
  const back = fetch(`${url}/api/policy/rollback`, json("POST", { revision: 1 }));
  expect(await engine.acknowledge(12n)).toMatchObject({
    policy: { name: "random" },
    rules: [],
    statistics: null,
  });
  expect(await body(await back)).toStrictEqual({
    revision: 3,
    engines: [{ engineId: "engine-1", step: 12 }],
  });
});

describe("what is wrong with a request is said", () => {
  const policy = { name: "mine", terms: [{ kind: "random" }] };
  const cases: [
    method: string,
    path: string,
    body: unknown,
    status: number,
    field: string | null,
    remedy: RegExp,
  ][] = [
    ["PUT", "/api/policy", { policy: "magic" }, 400, "policy", /one of auto, blend/],
    ["PUT", "/api/policy", { policy: { ...policy, budget: 10 } }, 400, "policy.budget", /at least/],
    [
      "PUT",
      "/api/policy",
      { policy: { ...policy, terms: [{ kind: "magic" }] } },
      400,
      "policy.terms.0.kind",
      /./,
    ],
    ["PUT", "/api/policy", { policy, rules: [{ name: "a", match: {} }] }, 400, "rules.0", /budget/],
    ["PUT", "/api/policy", { policy, other: 1 }, 400, "body", /other/],
    ["PUT", "/api/policy", {}, 400, "body.policy", /./],
    ["PUT", "/api/policy", "{", 400, null, /^$/],
    ["PUT", "/api/policy", JSON.stringify("x".repeat(300_000)), 413, null, /^$/],
    ["POST", "/api/policy/preview", { policy: "magic" }, 400, "policy", /one of auto, blend/],
    ["POST", "/api/policy/rollback", { revision: 9 }, 400, "revision", /one of those remembered: 1/],
    ["POST", "/api/policy/rollback", { revision: "1" }, 400, "body.revision", /./],
    ["DELETE", "/api/policy", {}, 404, "path", /HTTP API/],
    ["GET", "/api/nothing", undefined, 404, "path", /HTTP API/],
    ["GET", "/api/events?kept=x", undefined, 400, "query.kept", /ENGINE\/REQUEST/],
  ];
  test.each(cases)("%s %s: %#", async (method, path, content, status, field, remedy) => {
    const { plane, url } = await startHttp();
    const response = await fetch(`${url}${path}`, content === undefined ? { method } : json(method, content));
    expect(response.status).toBe(status);
    const { error } = await body(response);
    expect(error.field).toBe(field);
    expect(error.remedy ?? "").toMatch(remedy);
    expect(error.message.length).toBeGreaterThan(5);
    expect(plane.policy?.revision).toBe(1);
  });

  test("an engine's refusal, in its own words", async () => {
    const { plane, url } = await startHttp();
    const engine = await joined(plane);
    const put = fetch(`${url}/api/policy`, json("PUT", { policy: { ...policy, budget: 200 } }));
    await engine.refuse();
    await engine.acknowledge(3n);
    const response = await put;
    expect(response.status).toBe(422);
    expect(await body(response)).toStrictEqual({
      error: {
        message: "engine-1 refused it: smaller than window + block",
        field: "policy.budget",
        value: "200",
        remedy: "at least 256",
      },
    });
  });
});

test("POST /api/policy/preview: what rounds would free now; nothing is changed", async () => {
  const { plane, url } = await startHttp();
  const engine = await joined(plane);
  await engine.send({ type: "counters", counters: { ...counters, usedBlocks: 9 } });
  await eventually(() => plane.engines()[0]?.counters !== undefined);
  const preview = fetch(
    `${url}/api/policy/preview`,
    json("POST", {
      policy: { name: "random", terms: [{ kind: "random" }], budget: 1024, interval: 64 },
      rules: [{ name: "vip", match: { tags: ["vip"] }, budget: 0 }],
    }),
  );
  expect(await engine.next("watch")).toMatchObject({ requests: true, kept: null });
  const requests = [
    requestState({ request: "compressed", resident: 2100 }),
    requestState({ request: "not yet", resident: 1024 + 63 }),
    requestState({ request: "by a rule", tags: ["vip", "x"] }),
    requestState({ request: "own budget", budget: 512, resident: 600 }),
    requestState({ request: "waiting", state: "waiting" }),
  ];
  await engine.send({ type: "requests", step: 9n, requests, omitted: 0 });
  const answer = await body(await preview);
  expect(answer.document).toMatchObject({ budget: 1024, schema: 1, pin: { window: 128 } });
  expect(answer.changes).toContainEqual({ path: "policy.budget", from: 2048, to: 1024 });
  expect(answer.changes).toContainEqual({ path: "policy.interval", from: 128, to: 64 });
  expect(answer.changes).toContainEqual({ path: "rules.0", from: null, to: expect.anything() });
  expect(answer.engines).toStrictEqual([
    {
      engineId: "engine-1",
      requests: 4,
      requestsCompressed: 2,
      tokensEvicted: 2100 - 1024 + (600 - 512),
      // Blocks of 32: 66 → 32, 19 → 16; more than the counters say are in use.
      blocksReclaimed: 34 + 3,
      cacheUsedBefore: 0.9,
      cacheUsedAfter: 0,
    },
  ]);
  expect(plane.policy?.revision).toBe(1);
  expect((await engine.next("watch")).seconds).toBe(0);
});

describe("GET /api/events", () => {
  test("state at once and when it changes; events in batches, resumed after the last one", async () => {
    const { plane, url } = await startHttp();
    const reader = await Reader.open(`${url}/api/events`);
    expect((await reader.next("state")).data).toMatchObject({ engines: [], policy: { revision: 1 } });
    const engine = await joined(plane);
    await reader.next("state", ({ data }) => data.engines.length === 1);
    await engine.send({ type: "events", first: 0n, events: [round("a"), round("b", 8n)] });
    const batch = await reader.next("events", ({ data }) =>
      data.some(({ kind }: { kind: string }) => kind === "round"),
    );
    const rounds = batch.data.filter(({ kind }: { kind: string }) => kind === "round");
    expect(rounds[1]).toMatchObject({
      engineId: "engine-1",
      request: "b",
      data: { step: 8, evicted: 128, budget: 512 },
    });
    expect(rounds[1].id).toBe(rounds[0].id + 1);
    expect(batch.id).toBe(String(batch.data.at(-1).id));
    const seen = reader.of("events").flatMap(({ data }) => data.map(({ kind }: { kind: string }) => kind));
    expect(seen.slice(0, 2)).toStrictEqual(["connected", "acknowledged"]);

    const again = await Reader.open(`${url}/api/events`, { "last-event-id": String(rounds[0].id) });
    expect((await again.next("events")).data).toStrictEqual([rounds[1]]);
    // Nothing changed: no state comes again.
    const states = reader.of("state").length;
    await new Promise((wake) => setTimeout(wake, 1100));
    expect(reader.of("state").length).toBe(states);
  });

  test("requests and kept while asked for: engines are asked again, and told when nobody looks", async () => {
    const { plane, url } = await startHttp();
    const engine = await joined(plane, { engineId: "host/1" });
    const watching = await Reader.open(
      `${url}/api/events?requests=1&kept=${encodeURIComponent("host/1/r/1")}`,
    );
    const other = await Reader.open(`${url}/api/events`);
    const first = await engine.next("watch");
    expect(first).toStrictEqual({ type: "watch", seconds: 6, requests: true, kept: "r/1" });
    await engine.send({ type: "requests", step: 9n, requests: [requestState()], omitted: 3 });
    const kept = { type: "kept", step: 9n, computed: 64, resident: 32, layers: 1, kvHeads: 2, bins: 2 };
    await engine.send({ ...kept, request: "r/1", counts: Uint8Array.of(1, 0, 2, 0, 3, 0, 0, 1) });
    await engine.send({ ...kept, request: "another", counts: new Uint8Array(8) });
    expect((await watching.next("requests")).data).toMatchObject({ engineId: "host/1", step: 9, omitted: 3 });
    expect((await watching.next("kept")).data).toMatchObject({
      request: "r/1",
      bins: 2,
      counts: "AQACAAMAAAE=",
    });
    expect(await engine.next("watch")).toStrictEqual(first);
    watching.close();
    for (;;) {
      const last = await engine.next("watch");
      if (last.seconds > 0) continue;
      expect(last).toStrictEqual({ type: "watch", seconds: 0, requests: false, kept: null });
      break;
    }
    expect(watching.of("kept")).toHaveLength(1);
    expect([...other.of("requests"), ...other.of("kept")]).toHaveLength(0);
  });

  test("an engine that comes later is asked, too; close ends the streams", async () => {
    const { plane, url } = await startHttp();
    const reader = await Reader.open(`${url}/api/events?requests=1`);
    const engine = await joined(plane);
    expect(engine.received.find(({ type }) => type === "watch")).toMatchObject({ requests: true });
    await plane.close();
    await eventually(() => reader.ended);
  });

  test("no more than so many at once", async () => {
    const { url } = await startHttp({ maxStreams: 2 });
    const first = await Reader.open(`${url}/api/events`);
    await Reader.open(`${url}/api/events`);
    await expect(Reader.open(`${url}/api/events`)).rejects.toThrow(/503.*at most 2 at once/);
    first.close();
    await eventually(() => first.ended);
    await new Promise((wake) => setTimeout(wake, 50));
    await Reader.open(`${url}/api/events`);
  });
});

test("the dashboard's files, and nothing above them", async () => {
  const directory = temporaryDirectory();
  const page = join(directory, "page");
  mkdirSync(join(page, "assets"), { recursive: true });
  writeFileSync(join(directory, "secret"), "secret");
  writeFileSync(join(page, "index.html"), "<!doctype html><title>triattn</title>");
  writeFileSync(join(page, "assets", "app-1a2b.js"), "export {};");
  const { url } = await startHttp({ dashboardDirectory: page });
  const index = await fetch(url);
  expect(await index.text()).toContain("<title>triattn</title>");
  expect(index.headers.get("cache-control")).toBe("no-cache");
  const script = await fetch(`${url}/assets/app-1a2b.js`);
  expect(script.headers.get("content-type")).toMatch(/javascript/);
  expect(script.headers.get("cache-control")).toMatch(/immutable/);
  for (const path of ["/../secret", "/%2e%2e/secret", "/assets/..%2f..%2fsecret"]) {
    const response = await fetch(`${url}${path}`);
    expect(response.status).toBeGreaterThanOrEqual(400);
    expect(await response.text()).not.toContain('"secret"');
  }
  await expect(startHttp({ dashboardDirectory: join(directory, "none") })).rejects.toMatchObject({
    field: "http.dashboardDirectory",
  });
});
