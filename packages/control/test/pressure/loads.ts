import type { Arrival } from "./simulator.ts";

/** Few long requests, then many at once, again and again. */
export function bursts(
  count: number,
  quiet: Arrival,
  burst: Arrival,
  size: number,
  every: number,
): Arrival[] {
  return Array.from({ length: count }, (_, i) => [
    { ...quiet, at: i * every },
    { ...quiet, at: i * every + 20 },
    ...Array.from({ length: size }, () => ({ ...burst, at: i * every + Math.floor(every / 2) })),
  ]).flat();
}

/** Always the same. */
export function steady(count: number, every: number, prompt: number, output: number): Arrival[] {
  return Array.from({ length: count }, (_, i) => ({ at: i * every, prompt, output }));
}

/** More and more, then less and less, as over a day. */
export function tide(count: number, prompt: number, output: number): Arrival[] {
  let at = 0;
  return Array.from({ length: count }, (_, i) => {
    at += Math.round(60 - 50 * Math.sin((Math.PI * i) / count));
    return { at, prompt, output };
  });
}
