import { generator } from "./simulation.ts";

interface Shape {
  readonly layers: number;
  readonly kvHeads: number;
  readonly bins: number;
  readonly computed: number;
  readonly resident: number;
  readonly prompt: number;
}

/**
 * Counts as a policy might leave them, base64 of uint16 [layers, kvHeads, bins]: the prompt and the newest tokens,
 * and between them some heads that look near, some far, some at a few places. Every head keeps exactly `resident`.
 */
export function keptOf({ layers, kvHeads, bins, computed, resident, prompt }: Shape): string {
  const out = new Uint16Array(layers * kvHeads * bins);
  const edges = Array.from({ length: bins + 1 }, (_, i) => Math.ceil((i * computed) / bins));
  for (let head = 0; head < layers * kvHeads; head++) {
    const random = generator(1000 + head);
    const kind = random();
    const peaks = Array.from({ length: 3 + Math.floor(4 * random()) }, () => ({
      at: random(),
      width: 0.008 + 0.03 * random(),
    }));
    const reach = 0.05 + 0.5 * random();
    const liking = Array.from({ length: bins }, (_, bin) => {
      const from = edges[bin] ?? 0;
      const place = from / computed;
      if (from < prompt || computed - from < 160) return 1e3;
      const near = Math.exp((place - 1) / reach);
      const far = 0.6 + 0.4 * Math.sin(place * 40 + head);
      const chosen = peaks.reduce((sum, { at, width }) => sum + Math.exp(-(((place - at) / width) ** 2)), 0);
      const base = kind < 0.4 ? near : kind < 0.65 ? far : 0.08 + chosen;
      return base * (0.55 + 0.9 * random());
    });
    share(out.subarray(head * bins, (head + 1) * bins), liking, edges, resident);
  }
  return Buffer.from(out.buffer).toString("base64");
}

/** Gives each slice its part of `total` by liking, never more than it holds, until all of it is given. */
function share(
  counts: Uint16Array,
  liking: readonly number[],
  edges: readonly number[],
  total: number,
): void {
  const size = (bin: number) => (edges[bin + 1] ?? 0) - (edges[bin] ?? 0);
  let left = Math.min(total, edges.at(-1) ?? 0);
  for (let pass = 0; pass < 40 && left > 0; pass++) {
    const open = liking.map((value, bin) => ((counts[bin] ?? 0) < size(bin) ? value : 0));
    const sum = open.reduce((a, b) => a + b, 0);
    let given = 0;
    open.forEach((value, bin) => {
      const part = Math.min(size(bin) - (counts[bin] ?? 0), Math.floor((value / sum) * left));
      counts[bin] = (counts[bin] ?? 0) + part;
      given += part;
    });
    if (given === 0) {
      const bin = open.findIndex((value) => value > 0);
      counts[bin] = (counts[bin] ?? 0) + 1;
      given = 1;
    }
    left -= given;
  }
}
