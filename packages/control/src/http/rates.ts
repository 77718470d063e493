/** Over how long a rate is taken. */
const WINDOW_MS = 5000;

/** Growth of a total a second, over the last seconds, for several engines. */
export class Rates {
  readonly #samples = new Map<string, { at: number; total: bigint }[]>();

  /** Takes a total at a time in ms; totals of one engine only grow. */
  add(engineId: string, total: bigint, at: number): void {
    const samples = this.#samples.get(engineId) ?? [];
    // One sample from before the window stays, to measure from.
    while (samples.length > 1 && (samples[1]?.at ?? at) <= at - WINDOW_MS) samples.shift();
    samples.push({ at, total });
    this.#samples.set(engineId, samples);
  }

  of(engineId: string, now: number): number {
    const samples = this.#samples.get(engineId) ?? [];
    const newest = samples.at(-1);
    if (newest === undefined || newest.at < now - WINDOW_MS) return 0;
    const oldest = samples.find(({ at }) => at >= now - WINDOW_MS - 1000) ?? newest;
    const seconds = (newest.at - oldest.at) / 1000;
    return seconds > 0 ? Math.round((Number(newest.total - oldest.total) / seconds) * 10) / 10 : 0;
  }

  forget(engineId: string): void {
    this.#samples.delete(engineId);
  }
}
