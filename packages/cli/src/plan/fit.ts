import { type Point, predictMs } from "./measured.ts";
import type { Constants } from "./roofline.ts";

/** Steps of the search; each constant is found to this much. */
const GRID = {
  bandwidth: [0.8, 1, 0.01],
  raggedBandwidth: [0.7, 1, 0.01],
  compute: [0.35, 0.8, 0.01],
  layerMs: [0.02, 0.16, 0.001],
  roundBandwidth: [0.05, 1, 0.01],
} as const satisfies Record<keyof Constants, readonly [number, number, number]>;

const START: Constants = {
  bandwidth: 0.9,
  raggedBandwidth: 0.9,
  compute: 0.5,
  layerMs: 0.07,
  roundBandwidth: 0.3,
};

const values = (key: keyof Constants): number[] => {
  const [from, to, step] = GRID[key];
  return Array.from({ length: Math.round((to - from) / step) + 1 }, (_, i) =>
    Number((from + i * step).toFixed(4)),
  );
};

/** Sum of squares of relative errors. */
function loss(points: readonly Point[], constants: Constants): number {
  return points.reduce((sum, point) => sum + (predictMs(point, constants) / point.measuredMs - 1) ** 2, 0);
}

/**
 * The constants that predict the points best: one after the other over its grid, pairs that pull against each other
 * together, until nothing changes.
 */
export function fitRoofline(points: readonly Point[]): Constants {
  let best = START;
  const scan = (a: keyof Constants, b: keyof Constants): void => {
    let least = loss(points, best);
    for (const first of values(a)) {
      for (const second of a === b ? [first] : values(b)) {
        const next = { ...best, [a]: first, [b]: second };
        const found = loss(points, next);
        if (found < least - 1e-12) [least, best] = [found, next];
      }
    }
  };
  for (let before = Number.POSITIVE_INFINITY; loss(points, best) < before - 1e-9; ) {
    before = loss(points, best);
    scan("bandwidth", "layerMs");
    scan("compute", "layerMs");
    scan("compute", "bandwidth");
    scan("raggedBandwidth", "layerMs");
    scan("roundBandwidth", "roundBandwidth");
  }
  return best;
}

/** The error of each point as predicted by a fit to all others. */
export function leaveOneOut(points: readonly Point[]): number[] {
  return points.map((point, i) => {
    const constants = fitRoofline(points.filter((_, j) => j !== i));
    return predictMs(point, constants) / point.measuredMs - 1;
  });
}
