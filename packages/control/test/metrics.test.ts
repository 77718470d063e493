import { execFileSync, spawnSync } from "node:child_process";
import { expect, test } from "vitest";
import { FROM_COUNTERS, METRICS, type MetricInfo } from "../src/metrics/catalog.ts";
import { skipReason } from "../src/tallies.ts";
import { FakeEngine, hello } from "./fake-engine.ts";
import { eventually, startPlane } from "./helpers.ts";
import { counters, joined, startHttp } from "./http/helpers.ts";

/** `name{labels}` → value. */
function parse(text: string): Map<string, number> {
  const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return new Map(
    lines.map((line) => {
      const at = line.lastIndexOf(" ");
      return [line.slice(0, at), Number(line.slice(at + 1))];
    }),
  );
}

const engine1 = 'engine_id="engine-1",model="m"';

test("what engines reported, what the control plane counted", async () => {
  const { plane, url } = await startHttp({}, { rules: [{ name: "vip", match: {}, budget: 0 }] });
  const engine = await joined(plane);
  await engine.send({ type: "counters", counters: { ...counters, waiting: 3, planSeconds: 0.125 } });
  const skip = (reason: string) => ({ kind: "skip", step: 1n, request: "r", reason });
  const words = ["no free block for a shared block's copy", "policy 'x' came without statistics", "anything"];
  await engine.send({ type: "events", first: 2n, events: words.map(skip) });
  await engine.send({ type: "nonsense" });
  await eventually(() => plane.counters().link.framesDropped.invalid === 1);
  const response = await fetch(`${url}/metrics`);
  expect(response.headers.get("content-type")).toMatch(/^text\/plain; version=0\.0\.4/);
  const values = parse(await response.text());
  const expected: Record<string, number> = {
    [`triattn:engine_up{${engine1}}`]: 1,
    [`triattn:engine_info{${engine1},engine="vllm",version="0",runner="v1",world_size="1"}`]: 1,
    [`triattn:engine_policy_revision{${engine1}}`]: 1,
    [`triattn:compactions_total{${engine1}}`]: 1,
    [`triattn:tokens_generated_total{${engine1}}`]: 2 ** 60,
    [`triattn:requests_waiting{${engine1}}`]: 3,
    [`triattn:round_seconds_total{${engine1},phase="plan"}`]: 0.125,
    [`triattn:round_seconds_total{${engine1},phase="compact"}`]: 0.5,
    [`triattn:batch_stall_seconds_total{${engine1}}`]: 0.75,
    [`triattn:kv_blocks{${engine1},state="used"}`]: 8,
    [`triattn:kv_blocks{${engine1},state="free"}`]: 2,
    [`triattn:events_lost_total{${engine1}}`]: 2,
    [`triattn:compaction_skipped_total{${engine1},reason="no_free_block"}`]: 1,
    [`triattn:compaction_skipped_total{${engine1},reason="no_statistics"}`]: 1,
    [`triattn:compaction_skipped_total{${engine1},reason="other"}`]: 1,
    'triattn:policy_info{policy="random",selection="per_layer_per_head",revision="1"}': 1,
    "triattn:policy_budget_tokens": 2048,
    'triattn:rule_budget_tokens{rule="vip"}': 0,
    'triattn:link_frames_dropped_total{reason="invalid"}': 1,
    'triattn:link_frames_dropped_total{reason="oversized"}': 0,
    "triattn:events_received_total": 3,
    "triattn:engine_connections_total": 1,
  };
  for (const [series, value] of Object.entries(expected))
    expect([series, values.get(series)]).toEqual([series, value]);
  // Every metric there is has a value, and nothing else is there.
  const names = new Set([...values.keys()].map((series) => series.replace(/\{.*/s, "")));
  expect([...names].sort()).toEqual(Object.keys(METRICS).sort());

  // Two at once do not count anything twice.
  const [a, b] = await Promise.all([plane.metrics(), plane.metrics()]);
  expect(parse(b.text).get(`triattn:compactions_total{${engine1}}`)).toBe(1);
  expect(parse(a.text).get(`triattn:compactions_total{${engine1}}`)).toBe(1);

  engine.close();
  await eventually(() => plane.engines()[0]?.connected === false);
  const gone = parse((await plane.metrics()).text);
  expect(gone.get(`triattn:engine_up{${engine1}}`)).toBe(0);
  expect([...gone.keys()].filter((series) => series.includes("engine-1"))).toHaveLength(1);
});

test("labels are bounded: so many engines, so long a name, reasons from a list", async () => {
  const plane = await startPlane({ policy: "random" });
  const engines = Array.from(
    { length: 70 },
    (_, i) =>
      new FakeEngine(plane.endpoint, {
        engineId: `e${i}`,
        model: { ...hello.model, name: 'm"\\\n'.repeat(2000) },
      }),
  );
  for (const engine of engines) await engine.greet();
  await eventually(() => plane.engines().length === 70);
  const { text } = await plane.metrics();
  const up = text.split("\n").filter((line) => line.startsWith("triattn:engine_up{"));
  expect(up).toHaveLength(64);
  expect(Math.max(...text.split("\n").map((line) => line.length))).toBeLessThan(600);
  for (const engine of engines) engine.close();
  expect(skipReason("Whatever it says next")).toBe("other");
});

test("each of an engine's counters is a metric", () => {
  const used = new Set<string>(Object.values(FROM_COUNTERS));
  const elsewhere = ["step", "usedBlocks", "peakUsedBlocks", "roundsSkipped", "planSeconds", "roundSeconds"];
  expect(
    Object.keys(counters)
      .filter((name) => !used.has(name))
      .sort(),
  ).toEqual(elsewhere.sort());
});

test("names are what Prometheus wants", () => {
  for (const [name, info] of Object.entries<MetricInfo>(METRICS)) {
    expect(name).toMatch(/^(triattn:|process_)[a-z_]+$/);
    expect(name.endsWith("_total")).toBe(info.type === "counter");
  }
});

const promtool = spawnSync("promtool", ["--version"]).status === 0;
test.skipIf(!promtool)("promtool finds nothing (skipped where promtool is not installed)", async () => {
  const { plane } = await startHttp({}, { rules: [{ name: "vip", match: {}, budget: 0 }] });
  const engine = await joined(plane);
  await engine.send({ type: "counters", counters });
  await eventually(() => plane.engines()[0]?.counters !== undefined);
  const { text } = await plane.metrics();
  let said = "";
  try {
    execFileSync("promtool", ["check", "metrics"], { input: text, stdio: "pipe" });
  } catch (error) {
    said = String((error as { stderr: Buffer }).stderr) + String((error as { stdout: Buffer }).stdout);
  }
  // The colon is how vLLM and SGLang mark theirs.
  const findings = said.split("\n").filter((line) => line !== "" && !line.includes("should not contain ':'"));
  expect(findings).toEqual([]);
});
