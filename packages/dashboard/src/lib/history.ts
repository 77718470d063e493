/** A point of the charts, over all engines or one. */
export interface Sample {
  readonly resident: number;
  /** Tokens that would be resident without compression; null while requests are not reported. */
  readonly fullKv: number | null;
  /** 0 … 100. */
  readonly cacheUse: number;
  readonly tokensPerSecond: number;
  readonly roundsPerSecond: number | null;
  readonly running: number;
  readonly waiting: number;
}

export const SERIES = [
  "resident",
  "fullKv",
  "cacheUse",
  "tokensPerSecond",
  "roundsPerSecond",
  "running",
  "waiting",
] as const satisfies readonly (keyof Sample)[];
export type Series = (typeof SERIES)[number];

/** What is kept, in seconds. */
export const WINDOW = 600;

/** The last ten minutes in columns, as uPlot takes them; a pause in the data is a gap in the lines. */
export class History {
  /** Unix seconds. */
  times: number[] = [];
  columns: Record<Series, (number | null)[]> = empty();

  /** Takes a sample at a time in Unix seconds; one from before the last is left out. */
  add(time: number, sample: Sample): void {
    const last = this.times.at(-1);
    if (last !== undefined && time <= last) return;
    if (last !== undefined && time - last > 5) this.#push((last + time) / 2, undefined);
    this.#push(time, sample);
    const from = this.times.findIndex((t) => t >= time - WINDOW);
    // In one go now and then: taking one from the front of each column each time is slow.
    if (from > 120) {
      this.times = this.times.slice(from);
      for (const name of SERIES) this.columns[name] = this.columns[name].slice(from);
    }
  }

  get(...names: readonly Series[]): (number | null)[][] {
    return [this.times, ...names.map((name) => this.columns[name])];
  }

  #push(time: number, sample: Sample | undefined): void {
    this.times.push(time);
    for (const name of SERIES) this.columns[name].push(sample?.[name] ?? null);
  }
}

function empty(): Record<Series, (number | null)[]> {
  return Object.fromEntries(SERIES.map((name) => [name, []])) as unknown as Record<Series, (number | null)[]>;
}

/** Growth of a total a second over the last `windowSeconds`; a total that falls (a new engine) starts anew. */
export class Rate {
  readonly #window: number;
  #samples: { time: number; total: number }[] = [];

  constructor(windowSeconds: number) {
    this.#window = windowSeconds;
  }

  add(time: number, total: number): void {
    const last = this.#samples.at(-1);
    if (last !== undefined && (total < last.total || time < last.time)) this.#samples = [];
    if (last !== undefined && time === last.time) this.#samples.pop();
    this.#samples.push({ time, total });
    while (this.#samples.length > 2 && (this.#samples[1]?.time ?? time) <= time - this.#window)
      this.#samples.shift();
  }

  /** null before there are two samples. */
  get value(): number | null {
    const first = this.#samples[0];
    const last = this.#samples.at(-1);
    if (first === undefined || last === undefined || last.time <= first.time) return null;
    return (last.total - first.total) / (last.time - first.time);
  }
}
