import { createServer } from "node:net";
import { ConfigError, EndpointError, type HttpOptions } from "@triattn/control";
import { pino } from "pino";
import { describe, expect, test, vi } from "vitest";
import { exitCodeOf } from "../src/errors.ts";
import { prepare, serve, start } from "../src/index.ts";
import { readDashboard } from "../src/serve/dashboard.ts";
import { readable } from "../src/serve/logger.ts";
import { describe as describePlan } from "../src/serve/output.ts";
import { resolvePolicy } from "../src/serve/policy.ts";
import { fakeEnvironment, fakeOptions, TemporaryDirectory } from "./helpers.ts";

// Each looks for an engine, which takes seconds on a busy machine.
vi.setConfig({ testTimeout: 60_000 });

const TOKEN = "0123456789abcdef";

test.each<[dashboard: boolean | string, found: HttpOptions]>([
  [true, { host: undefined, port: undefined }],
  ["9471", { port: 9471 }],
  [":9471", { host: undefined, port: 9471 }],
  ["localhost", { host: "localhost", port: undefined }],
  ["127.0.0.2:1", { host: "127.0.0.2", port: 1 }],
  ["[::1]:0", { host: "::1", port: 0 }],
])("--dashboard %s", (dashboard, { host, port }) => {
  const options = readDashboard({ dashboard }, {});
  expect([options?.host, options?.port]).toEqual([host, port]);
});

test("what --dashboard cannot be", () => {
  for (const dashboard of ["a:b", "::1:80", "http://x", "a:1:2", "[::1", "Qwen/Qwen3-8B"]) {
    expect(() => readDashboard({ dashboard }, {})).toThrow(expect.objectContaining({ field: "--dashboard" }));
  }
  expect(() => readDashboard({ dashboard: "1.2.3.4:99999", dashboardToken: undefined }, {})).toThrow(
    /http\.port/,
  );
  expect(() => readDashboard({ dashboard: "0.0.0.0" }, {})).toThrow(/give a token/);
  expect(() => readDashboard({ dashboardToken: "f" }, {})).toThrow(/give --dashboard, too/);
  expect(readDashboard({}, { TRIATTN_HTTP_TOKEN: TOKEN })).toBeUndefined();
});

test("the token comes from a file or the environment, and reaches neither engine nor output", async () => {
  using directory = new TemporaryDirectory();
  const file = directory.write("token", `${TOKEN}file\n`);
  const environment = { TRIATTN_HTTP_TOKEN: TOKEN };
  expect(readDashboard({ dashboard: "0.0.0.0" }, environment)?.token).toBe(TOKEN);
  expect(readDashboard({ dashboard: true, dashboardToken: file }, environment)?.token).toBe(`${TOKEN}file`);
  expect(() => readDashboard({ dashboard: true, dashboardToken: "/nowhere" }, {})).toThrow(/ENOENT/);
  const plan = await prepare(
    fakeOptions("", { dashboard: true, environment: fakeEnvironment("", environment) }),
  );
  expect(plan.http?.token).toBe(TOKEN);
  expect(plan.variables).toMatchObject({ TRIATTN_HTTP_TOKEN: undefined });
  expect("TRIATTN_HTTP_TOKEN" in plan.variables).toBe(true);
  expect(JSON.stringify(describePlan(plan))).not.toContain(TOKEN);
});

test("a policy file with rules", () => {
  using directory = new TemporaryDirectory();
  const resolve = (document: object) =>
    resolvePolicy(
      { model: "nobody/nothing", policy: directory.write("p.json", JSON.stringify(document)) },
      {},
    );
  const rules = [{ name: "vip", match: { tags: ["vip"] }, budget: 0 }];
  expect(resolve({ policy: "keydiff", rules })).toMatchObject({ policy: { name: "keydiff" }, rules });
  expect(resolve({ name: "mine", terms: [{ kind: "random" }] }).rules).toEqual([]);
  expect(() => resolve({ policy: "keydiff", rules: [{ ...rules[0], budget: 20 }] })).toThrow(
    /rules\.0\.budget/,
  );
  expect(() => resolve({ policy: "keydiff", rules, budget: 5 })).toThrow(/budget = 5: a file with rules/);
  expect(() => resolve({ rules })).toThrow(ConfigError);
  // What only a rule's policy needs is missing just the same.
  const scored = [{ name: "scored", match: {}, policy: "triattention" as const }];
  expect(() => resolve({ policy: "keydiff", rules: scored })).toThrow(/triattn calibrate/);
});

test("a budget that no cache can keep is refused, a rule's too", async () => {
  const rules = [{ name: "tight", match: {}, budget: 140 }];
  await expect(prepare(fakeOptions("", { rules }))).rejects.toMatchObject({ field: "rules.0.budget" });
});

test("bounds of a budget that moves, checked like budgets", async () => {
  const plan = await prepare(fakeOptions("", { pressure: { min: 300, max: 4096 } }));
  expect(describePlan(plan)).toMatchObject({ pressure: { min: 300, max: 4096 } });
  await expect(prepare(fakeOptions("", { pressure: { min: 100, max: 4096 } }))).rejects.toMatchObject({
    field: "pressure.min",
    value: 100,
  });
  await expect(prepare(fakeOptions("", { pressure: { min: 512, max: 256 } }))).rejects.toMatchObject({
    field: "pressure.max",
  });
});

describe("a served engine", () => {
  test("has a dashboard where asked for, with rules in force", async () => {
    const rules = [{ name: "vip", match: { tags: ["vip"] }, budget: 0 }];
    const served = await serve(fakeOptions("", { dashboard: "127.0.0.1:0", rules }));
    try {
      expect(served.dashboard).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
      const state = await (await fetch(`${served.dashboard}/api/state`)).json();
      expect(state).toMatchObject({ policy: { rules }, engines: [{ connected: true }] });
    } finally {
      await served.stop();
    }
    await expect(fetch(`${served.dashboard}/api/state`)).rejects.toThrow();
  });

  test("does not start when the port is taken: exit code 3", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await new Promise((listening) => server.once("listening", listening));
    const { port } = server.address() as { port: number };
    try {
      const plan = await prepare(fakeOptions("", { dashboard: String(port) }));
      const error = await start(plan).catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(EndpointError);
      expect(exitCodeOf(error)).toBe(3);
    } finally {
      server.close();
    }
  });
});

test("the log, for people", () => {
  const lines: string[] = [];
  const logger = pino({ name: "triattn" }, { write: (line: string) => lines.push(readable(line)) });
  logger.warn({ engineId: "e1", data: { a: 1 } }, "an engine refused a policy");
  logger.error({ err: new Error("broken") }, "it went wrong");
  expect(lines[0]).toBe('triattn: warn: an engine refused a policy (engineId=e1, data={"a":1})\n');
  expect(lines[1]).toContain("triattn: error: it went wrong (err=broken)");
});
