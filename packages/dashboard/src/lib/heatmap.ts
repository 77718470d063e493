import type { ApiKept } from "@triattn/protocol";

/** What a round kept: shares by row (layer and KV head) and slice of positions. */
export interface HeatMap {
  readonly layers: number;
  readonly rows: number;
  readonly bins: number;
  /** Tokens of a slice kept over tokens in it, [rows, bins], 0 … 1; NaN where a slice holds no position. */
  readonly shares: Float32Array;
  /** Tokens kept, [rows, bins]. */
  readonly counts: Float32Array;
  /** First position of each slice, and the length at the end: [bins + 1]. */
  readonly edges: readonly number[];
  readonly labels: readonly string[];
}

export type HeatMapBy = "heads" | "layers";

/** uint16 little-endian from base64. Throws RangeError where it does not hold `length` of them. */
export function decodeCounts(base64: string, length: number): Uint16Array {
  const binary = atob(base64);
  if (binary.length !== length * 2) {
    throw new RangeError(`the counts are ${binary.length} bytes; ${length * 2} were announced`);
  }
  const counts = new Uint16Array(length);
  for (let i = 0; i < length; i++) {
    counts[i] = binary.charCodeAt(2 * i) | (binary.charCodeAt(2 * i + 1) << 8);
  }
  return counts;
}

/** Slice i holds the positions p with floor(p · bins / computed) = i. */
export function sliceEdges(computed: number, bins: number): number[] {
  return Array.from({ length: bins + 1 }, (_, i) => Math.ceil((i * computed) / bins));
}

/** The map of a report: a row for each layer and KV head, or their mean for each layer. */
export function heatMap(kept: ApiKept, by: HeatMapBy): HeatMap {
  const { layers, kvHeads, bins, computed } = kept;
  const all = decodeCounts(kept.counts, layers * kvHeads * bins);
  const edges = sliceEdges(computed, bins);
  const heads = by === "heads" ? 1 : kvHeads;
  const rows = (layers * kvHeads) / heads;
  const counts = new Float32Array(rows * bins);
  const shares = new Float32Array(rows * bins);
  for (let i = 0; i < all.length; i++) {
    const row = Math.floor(i / bins / heads);
    const cell = row * bins + (i % bins);
    counts[cell] = (counts[cell] ?? 0) + (all[i] ?? 0) / heads;
  }
  for (let i = 0; i < counts.length; i++) {
    const bin = i % bins;
    const size = (edges[bin + 1] ?? 0) - (edges[bin] ?? 0);
    shares[i] = size > 0 ? Math.min(1, (counts[i] ?? 0) / size) : Number.NaN;
  }
  const label = (row: number) =>
    by === "heads"
      ? `layer ${Math.floor(row / kvHeads)}, KV head ${row % kvHeads}`
      : `layer ${row}, mean over its ${kvHeads} KV heads`;
  return {
    layers,
    rows,
    bins,
    shares,
    counts,
    edges,
    labels: Array.from({ length: rows }, (_, row) => label(row)),
  };
}

/** A coarse table of the map for readers who cannot see it: the share kept in `slices` equal parts of the positions. */
export function coarse(map: HeatMap, slices: number): { label: string; shares: number[] }[] {
  const length = map.edges.at(-1) ?? 0;
  return map.labels.map((label, row) => {
    const kept = new Array<number>(slices).fill(0);
    const size = new Array<number>(slices).fill(0);
    for (let bin = 0; bin < map.bins; bin++) {
      const from = map.edges[bin] ?? 0;
      const tokens = (map.edges[bin + 1] ?? 0) - from;
      const slice = Math.min(slices - 1, Math.floor(((from + tokens / 2) * slices) / Math.max(1, length)));
      kept[slice] = (kept[slice] ?? 0) + (map.counts[row * map.bins + bin] ?? 0);
      size[slice] = (size[slice] ?? 0) + tokens;
    }
    return { label, shares: kept.map((count, i) => count / Math.max(1, size[i] ?? 0)) };
  });
}

/** Cividis, which reads the same with and without colour vision; 9 stops of the published map. */
const STOPS: readonly (readonly [number, number, number])[] = [
  [0, 32, 76],
  [0, 48, 111],
  [58, 71, 108],
  [90, 93, 109],
  [119, 116, 117],
  [148, 141, 120],
  [180, 168, 112],
  [214, 198, 96],
  [255, 233, 69],
];

/** The colour of a share, 0 … 1; by its square root, since most of what there is lies near 0. */
export function colour(share: number): readonly [number, number, number] {
  const at = Math.sqrt(Math.min(1, Math.max(0, share))) * (STOPS.length - 1);
  const low = STOPS[Math.floor(at)] ?? [0, 0, 0];
  const high = STOPS[Math.ceil(at)] ?? low;
  const part = at - Math.floor(at);
  const mix = (i: 0 | 1 | 2) => Math.round(low[i] + (high[i] - low[i]) * part);
  return [mix(0), mix(1), mix(2)];
}

/** RGBA pixels [rows, bins] of a map; slices without a position are see-through. */
export function pixels(map: HeatMap): Uint8ClampedArray<ArrayBuffer> {
  const out = new Uint8ClampedArray(map.rows * map.bins * 4);
  map.shares.forEach((share, i) => {
    if (Number.isNaN(share)) return;
    out.set(colour(share), 4 * i);
    out[4 * i + 3] = 255;
  });
  return out;
}
