import fc from "fast-check";
import { afterEach, expect, onTestFinished, test, vi } from "vitest";
import { run } from "../src/program.ts";
import { press, split } from "../src/top/keys.ts";
import { createModel, Intake, SORTS, sorted, type TopModel } from "../src/top/model.ts";
import { COLOUR, PLAIN, render, requestLines } from "../src/top/view.ts";
import { event, FakeControlServer, request } from "./fixtures/control-server.ts";
import { TemporaryDirectory } from "./helpers.ts";

afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
  process.exitCode = 0;
});

async function server(): Promise<FakeControlServer> {
  const fake = await FakeControlServer.start();
  onTestFinished(() => fake.close());
  return fake;
}

/** A model that has heard of everything once. */
async function filled(): Promise<TopModel> {
  const fake = await server();
  const model = createModel(fake.url);
  const intake = new Intake(model);
  intake.take({ type: "state", data: fake.state }, 0);
  intake.take(
    { type: "requests", data: { engineId: "vllm-4711", step: 1, requests: fake.requests, omitted: 0 } },
    0,
  );
  intake.take({ type: "events", data: [event(1, "chatcmpl-000000")] }, 0);
  fake.tick();
  intake.take({ type: "state", data: fake.state }, 1000);
  return model;
}

const ansi = new RegExp(`${String.fromCharCode(27)}\\[[0-9;]*m`, "g");

test("80 × 24 without colour: everything that matters is there, in plain ASCII", async () => {
  const model = await filled();
  model.request = "chatcmpl-000000";
  model.scroll = 36;
  press(model, "k", 12);
  press(model, "j", 12);
  const lines = render(model, { columns: 80, rows: 24 }, PLAIN);
  expect(lines).toHaveLength(24);
  for (const line of lines) expect(line).toMatch(/^[\x20-\x7e]{0,80}$/);
  const text = lines.join("\n");
  for (const title of [
    "RUN",
    "WAIT",
    "RESIDENT",
    "CACHE",
    "TOK/S",
    "ROUND/S",
    "EVICT/S",
    "PREEMPT",
    "STALL",
    "ROUNDS",
  ]) {
    expect(text).toContain(title);
  }
  expect(lines[0]).toMatch(/triattention r3, budget 2,048, 1 rule .*10:11:12$/);
  // 15 rounds, 1,920 tokens and 4 ms of waiting in one second.
  expect(text).toMatch(/vllm-4711 +340 +12 +712,432 +91% +9,500 +15 +1,920 +3 +0\.4%/);
  expect(text).toMatch(/> chatcmpl-000000 +running +0 +100 +3,000 +2,048 +4,096 +952 +7$/m);
  expect(text).toMatch(/40 of 40 {2}chatcmpl-000000: 68\.3% of 3,000 resident, rule gold, tags gold/);
  expect(text).toMatch(/round chatcmpl-000000 {2}evicted 128 at length 9,000, 8 blocks back/);
});

test("no size and no name of others breaks the screen", async () => {
  const model = await filled();
  const names = fc.string({ unit: "binary", maxLength: 60 });
  const property = fc.property(
    fc.integer({ min: 1, max: 200 }),
    fc.integer({ min: 1, max: 60 }),
    fc.array(names, { maxLength: 30 }),
    fc.constantFrom(PLAIN, COLOUR),
    (columns, rows, ids, style) => {
      const requests = ids.map((id, i) => ({ ...request(i), request: id, rule: id, tags: [id] }));
      model.requests.set("vllm-4711", { engineId: "vllm-4711", step: 1, requests, omitted: 3 });
      model.request = ids[0];
      model.notice = ids[1];
      const lines = render(model, { columns, rows }, style);
      expect(lines.length).toBeLessThanOrEqual(rows);
      for (const line of lines) {
        const shown = line.replaceAll(ansi, "");
        expect(shown).toMatch(/^[\x20-\x7e]*$/);
        expect(shown.length).toBeLessThanOrEqual(columns);
      }
    },
  );
  fc.assert(property, { numRuns: 150 });
}, 60_000);

test("keys: order, choice, engines, help", async () => {
  const model = await filled();
  const size = { columns: 80, rows: 24 };
  const lines = requestLines(model, size);
  const type = (keys: string) => split(keys).map((key) => press(model, key, lines));
  for (const sort of SORTS) {
    expect(model.sort).toBe(sort);
    expect(sorted(model)).toHaveLength(40);
    type("s");
  }
  const longest = sorted(model)[0]?.request;
  type("\x1b[B");
  expect(model.request).toBe(longest);
  type("r");
  expect(sorted(model).at(-1)?.request).toBe(longest);
  type("\x1b[F\x1b[6~\x1b[6~");
  expect(model.request).toBe(longest);
  expect(model.scroll).toBe(40 - lines);
  type("\x1b[H");
  expect(model.scroll).toBe(0);
  expect(type("?")).toEqual(["redraw"]);
  expect(render(model, size, PLAIN).join("\n")).toMatch(/Enter, Esc {4}apply the proposal/);
  // Any key leaves the help, and does nothing else.
  expect(type("q")).toEqual(["redraw"]);
  expect(type("q")).toEqual(["quit"]);
  expect(type("\x03")).toEqual(["quit"]);
  expect(type("\x1a")).toEqual(["suspend"]);
});

test("a budget is proposed in steps, and never between nothing and what is pinned", async () => {
  const model = await filled();
  const type = (keys: string) => split(keys).map((key) => press(model, key, 10));
  expect(type("++")).toEqual(["preview", "preview"]);
  expect(model.proposal?.budget).toBe(2048 + 256);
  expect(render(model, { columns: 80, rows: 24 }, PLAIN).at(-1)).toMatch(
    /^budget 2,048 -> 2,304\? \[Enter\] yes \[Esc\] no {2}asking/,
  );
  expect(type("\x1b")).toEqual(["redraw"]);
  expect(model.proposal).toBeUndefined();
  type("-".repeat(15));
  // 2,048 - 15 × 128 would be less than 4 sinks and a window of 128.
  expect(model.proposal?.budget).toBe(0);
  type("+");
  expect(model.proposal?.budget).toBe(256);
  expect(type("\r")).toEqual(["apply"]);
});

test("--once for people and for programs", async () => {
  const fake = await server();
  const stdout = vi.spyOn(process.stdout, "write").mockReturnValue(true);
  expect(await run(["top", fake.url, "--once"])).toBe(0);
  const text = stdout.mock.calls.join("");
  expect(text).toMatch(/vllm-4711 +340/);
  expect(text.match(/chatcmpl-/g)).toHaveLength(40);
  stdout.mockClear();
  expect(await run(["top", fake.url.replace("http://", ""), "--once", "--json"])).toBe(0);
  const found = JSON.parse(stdout.mock.calls.join(""));
  expect(found.state.engines[0].engineId).toBe("vllm-4711");
  expect(found.requests[0].requests).toHaveLength(40);
});

test("what is wrong is said in one line", async () => {
  using directory = new TemporaryDirectory();
  const fake = await server();
  fake.token = "a-token-of-more-than-16";
  const stderr = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  const stdout = vi.spyOn(process.stdout, "write").mockReturnValue(true);
  const closed = await FakeControlServer.start();
  await closed.close().catch(() => {});
  const cases: [string[], number, RegExp][] = [
    [
      ["http://127.0.0.1:1", "--once"],
      3,
      /url = http:\/\/127\.0\.0\.1:1: nobody answers .*triattn serve --dashboard/,
    ],
    [["not a url", "--once"], 2, /url = not a url: an address of a control plane, such as http/],
    [[fake.url, "--once"], 2, /token = missing or another: .*--token-file or TRIATTN_HTTP_TOKEN/],
    [[fake.url, "--once", "--token-file", "/nowhere"], 2, /--token-file = \/nowhere: .*ENOENT/],
    [[fake.url, "--token-file", directory.write("token", `${fake.token}\n`)], 2, /terminal = none: .*--once/],
  ];
  for (const [args, code, message] of cases) {
    stderr.mockClear();
    expect([await run(["top", ...args]), args]).toEqual([code, args]);
    expect(stderr.mock.calls.join("")).toMatch(message);
  }
  vi.stubEnv("TRIATTN_HTTP_TOKEN", fake.token);
  expect(await run(["top", fake.url, "--once", "--json"])).toBe(0);
  expect(stdout).toHaveBeenCalled();
});
