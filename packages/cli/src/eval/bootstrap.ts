import { Random } from "./random.ts";

/** Lower and upper end of a 95 % interval. */
export type Interval = readonly [number, number];

export const RESAMPLES = 10_000;

const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;

/**
 * The 95 % percentile interval of the mean of `values` under resampling of items with replacement. Given differences
 * of two arms on the same items, it is the paired bootstrap. The same seed gives the same interval. No value: NaN.
 */
export function bootstrap(values: readonly number[], seed: number, resamples = RESAMPLES): Interval {
  const n = values.length;
  if (n === 0) return [Number.NaN, Number.NaN];
  const random = new Random(`bootstrap/${seed}`);
  const means = Array.from({ length: resamples }, () => {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += values[Math.floor(random.next() * n)] as number;
    return sum / n;
  });
  means.sort((a, b) => a - b);
  const at = (part: number) => means[Math.min(resamples - 1, Math.floor(part * resamples))] as number;
  return [at(0.025), at(0.975)];
}

/** Wilson's 95 % interval of a proportion: honest at 0 and at 1, where resampling knows of no spread. */
export function wilson(right: number, total: number): Interval {
  if (total === 0) return [Number.NaN, Number.NaN];
  const z = 1.959963984540054;
  const p = right / total;
  const centre = p + (z * z) / (2 * total);
  const spread = z * Math.sqrt((p * (1 - p)) / total + (z * z) / (4 * total * total));
  const scale = 1 + (z * z) / total;
  return [Math.max(0, (centre - spread) / scale), Math.min(1, (centre + spread) / scale)];
}

export interface Comparison {
  /** Mean of the differences: above 0 is better where more is better. */
  readonly difference: number;
  readonly ci95: Interval;
  /** Items on which it is above, and below. */
  readonly above: number;
  readonly below: number;
}

/** One arm against another on the same items, in the same order. Throws RangeError when they are not as many. */
export function compare(of: readonly number[], to: readonly number[], seed: number): Comparison {
  if (of.length !== to.length) throw new RangeError(`${of.length} items against ${to.length}`);
  const differences = of.map((value, i) => value - (to[i] as number));
  return {
    difference: mean(differences),
    ci95: bootstrap(differences, seed),
    above: differences.filter((d) => d > 0).length,
    below: differences.filter((d) => d < 0).length,
  };
}
