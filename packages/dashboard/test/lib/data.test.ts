import type { ApiEvent, ApiKept, RequestState } from "@triattn/protocol";
import fc from "fast-check";
import { expect, test } from "vitest";
import { coarse, colour, decodeCounts, heatMap, pixels, sliceEdges } from "../../src/lib/heatmap.ts";
import { History, Rate, type Sample } from "../../src/lib/history.ts";
import { arrange, toRow } from "../../src/lib/requests.ts";
import { RoundBook, sawtooth } from "../../src/lib/rounds.ts";
import { moveRow, scrollToRow, virtualWindow } from "../../src/lib/virtual.ts";
import { keptOf } from "../fake/kept.ts";

test("a virtual list holds every row in sight, and few others", () => {
  fc.assert(
    fc.property(
      fc.nat(100_000),
      fc.integer({ min: 10, max: 60 }),
      fc.integer({ min: -500, max: 6_000_000 }),
      fc.integer({ min: 100, max: 3000 }),
      (count, height, scrollTop, viewport) => {
        const { first, end, before, total } = virtualWindow(count, height, scrollTop, viewport);
        const top = Math.min(Math.max(0, scrollTop), Math.max(0, total - viewport));
        expect(first).toBeGreaterThanOrEqual(0);
        expect(end).toBeLessThanOrEqual(count);
        expect(first * height).toBeLessThanOrEqual(top);
        expect(end * height).toBeGreaterThanOrEqual(Math.min(total, top + viewport));
        expect(before).toBe(first * height);
        expect(end - first).toBeLessThanOrEqual(Math.ceil(viewport / height) + 26);
      },
    ),
  );
});

test("keys move inside a list, and the row is then in sight", () => {
  expect(moveRow("ArrowDown", -1, 5, 3)).toBe(0);
  expect(moveRow("ArrowDown", 4, 5, 3)).toBe(4);
  expect(moveRow("ArrowUp", 0, 5, 3)).toBe(0);
  expect(moveRow("PageDown", 1, 50, 10)).toBe(11);
  expect(moveRow("End", 1, 50, 10)).toBe(49);
  expect(moveRow("x", 1, 50, 10)).toBeUndefined();
  expect(moveRow("Home", 0, 0, 10)).toBeUndefined();
  expect([scrollToRow(0, 32, 100, 320), scrollToRow(5, 32, 100, 320), scrollToRow(20, 32, 100, 320)]).toEqual(
    [0, 100, 352],
  );
});

const request = (over: Partial<RequestState>): RequestState => ({
  request: "r1",
  state: "running",
  priority: 0,
  tags: [],
  rule: null,
  prompt: 10,
  computed: 100,
  resident: 50,
  budget: 48,
  evictedTotal: 50,
  rounds: 2,
  ...over,
});

test("requests are filtered by every word and sorted, equal ones by their names", () => {
  const rows = [
    toRow("e", request({ request: "r10", computed: 5, tags: ["batch"] })),
    toRow("e", request({ request: "r2", computed: 5, rule: "Night" })),
    toRow("e", request({ request: "r1", computed: 9, state: "waiting", tags: ["batch", "long"] })),
  ];
  const names = (filter: string, column: "computed" | "rule" | "request", descending = false) =>
    arrange(rows, filter, { column, descending }).map((row) => row.request);
  expect(names("", "computed")).toEqual(["r2", "r10", "r1"]);
  expect(names("", "computed", true)).toEqual(["r1", "r2", "r10"]);
  expect(names("", "rule")).toEqual(["r2", "r1", "r10"]);
  expect(names("tag:batch state:wait", "request")).toEqual(["r1"]);
  expect(names("night", "request")).toEqual(["r2"]);
  expect(names("batch nothing", "request")).toEqual([]);
});

const roundEvent = (id: number, computed: number, evicted: number, evictedTotal: number): ApiEvent => ({
  id,
  time: "2026-01-01T00:00:00Z",
  engineId: "e",
  kind: "round",
  request: "r1",
  data: {
    step: id,
    revision: 1,
    budget: 48,
    computed,
    evicted,
    evictedTotal,
    blocksReclaimed: 1,
    blocksCopied: 0,
  },
});

test("rounds make a saw-tooth; a preempted request's begins anew", () => {
  const book = new RoundBook();
  book.add(roundEvent(1, 64, 16, 16));
  book.add(roundEvent(2, 80, 16, 32));
  expect(sawtooth(book.get("e/r1"), { computed: 90, resident: 58 })).toEqual([
    { computed: 0, resident: 0 },
    { computed: 64, resident: 64 },
    { computed: 64, resident: 48 },
    { computed: 80, resident: 64 },
    { computed: 80, resident: 48 },
    { computed: 90, resident: 58 },
  ]);
  book.add(roundEvent(3, 64, 16, 16));
  expect(book.get("e/r1")).toHaveLength(1);
  // What came before the first round that was seen is not drawn.
  expect(
    sawtooth(
      [...book.get("e/r1")].map((r) => ({ ...r, evictedTotal: 32 })),
      undefined,
    )[0],
  ).toEqual({
    computed: 64,
    resident: 48,
  });
});

const sample: Sample = {
  resident: 1,
  fullKv: null,
  cacheUse: 2,
  tokensPerSecond: 3,
  roundsPerSecond: 4,
  running: 5,
  waiting: 6,
};

test("ten minutes are kept, and a pause is a gap", () => {
  const history = new History();
  for (let t = 0; t < 2000; t++) history.add(t, sample);
  expect(history.times.length).toBeLessThanOrEqual(600 + 122);
  expect(history.times.at(-1)).toBe(1999);
  history.add(1999, sample);
  history.add(2100, sample);
  expect(history.columns.resident.slice(-3)).toEqual([1, null, 1]);
  expect(history.columns.resident.length).toBe(history.times.length);
});

test("a rate is taken over its window and starts anew with a total that falls", () => {
  const rate = new Rate(5);
  expect(rate.value).toBeNull();
  for (let t = 0; t <= 20; t++) rate.add(t, t < 10 ? 0 : (t - 10) * 7);
  expect(rate.value).toBeCloseTo(7);
  rate.add(21, 0);
  expect(rate.value).toBeNull();
  rate.add(22, 4);
  expect(rate.value).toBe(4);
});

function kept(computed: number, layers: number, kvHeads: number, bins: number, counts: number[]): ApiKept {
  const text = Buffer.from(new Uint16Array(counts).buffer).toString("base64");
  return { engineId: "e", request: "r", step: 1, computed, resident: 0, layers, kvHeads, bins, counts: text };
}

test("slices hold the positions that fall into them, also when there are fewer than slices", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 50_000 }), fc.integer({ min: 1, max: 1024 }), (computed, bins) => {
      const edges = sliceEdges(computed, bins);
      expect(edges[0]).toBe(0);
      expect(edges.at(-1)).toBe(computed);
      for (const position of [0, computed - 1, Math.floor(computed / 2)]) {
        const bin = Math.floor((position * bins) / computed);
        expect(edges[bin]).toBeLessThanOrEqual(position);
        expect(edges[bin + 1]).toBeGreaterThan(position);
      }
    }),
  );
});

test("a heat map is what was kept of each slice, by head and by layer", () => {
  const report = kept(10, 2, 2, 5, [2, 0, 1, 2, 0, 0, 0, 1, 2, 2, 2, 2, 0, 0, 1, 2, 2, 0, 0, 1]);
  const heads = heatMap(report, "heads");
  expect([...heads.shares.slice(0, 5)]).toEqual([1, 0, 0.5, 1, 0]);
  expect(heads.labels[3]).toBe("layer 1, KV head 1");
  const layers = heatMap(report, "layers");
  expect([...layers.shares.slice(0, 5)]).toEqual([0.5, 0, 0.5, 1, 0.5]);
  expect(layers.rows).toBe(2);
  expect(coarse(heads, 5)[0]?.shares).toEqual([1, 0, 0.5, 1, 0]);
  const image = pixels(heads);
  expect([...image.slice(0, 4)]).toEqual([...colour(1), 255]);
  expect([...image.slice(4, 8)]).toEqual([...colour(0), 255]);
  // Fewer positions than slices: those without one are see-through.
  expect(pixels(heatMap(kept(1, 1, 1, 2, [1, 0]), "heads"))[7]).toBe(0);
  expect(() => decodeCounts("AAA=", 2)).toThrow(/2 bytes; 4/);
});

test("simulated heads keep exactly what is resident, and no slice more than it holds", () => {
  const shape = { layers: 2, kvHeads: 2, bins: 64, computed: 1000, resident: 300, prompt: 40 };
  const counts = decodeCounts(keptOf(shape), 2 * 2 * 64);
  for (let head = 0; head < 4; head++) {
    expect(counts.slice(head * 64, head * 64 + 64).reduce((a, b) => a + b, 0)).toBe(300);
  }
  const edges = sliceEdges(1000, 64);
  counts.forEach((count, i) => {
    expect(count).toBeLessThanOrEqual((edges[(i % 64) + 1] ?? 0) - (edges[i % 64] ?? 0));
  });
});

test("colours grow lighter with the share, so that grey shows it as well", () => {
  const light = (share: number) => {
    const [r, g, b] = colour(share);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  for (let i = 1; i <= 100; i++) expect(light(i / 100)).toBeGreaterThan(light((i - 1) / 100));
});
