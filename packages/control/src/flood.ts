/** What one connection may send; a burst of so many seconds' worth is let through. */
export interface LinkLimits {
  /** Frames a second of one engine. Default 500; engines send some twenty. */
  readonly framesPerSecond?: number;
  /** Bytes a second of one engine. Default 8 MiB. */
  readonly bytesPerSecond?: number;
}

/** An engine that comes back sends what it kept: up to 65,536 events at once. */
const BURST_SECONDS = 8;
/** Connections whose rates are remembered; the oldest go. */
const MOST_CONNECTIONS = 4096;

interface Bucket {
  frames: number;
  bytes: number;
  at: number;
}

/** Says which frames are too many: a broken or hostile engine must not keep the others from being heard. */
export class FloodGate {
  readonly #frames: number;
  readonly #bytes: number;
  readonly #buckets = new Map<string, Bucket>();

  constructor({ framesPerSecond = 500, bytesPerSecond = 8 << 20 }: LinkLimits = {}) {
    this.#frames = framesPerSecond;
    this.#bytes = bytesPerSecond;
  }

  get size(): number {
    return this.#buckets.size;
  }

  /** Takes a frame of a connection into account, at a time in ms; false when it is too much. */
  admit(route: string, bytes: number, now: number = performance.now()): boolean {
    const full = { frames: this.#frames * BURST_SECONDS, bytes: this.#bytes * BURST_SECONDS };
    const bucket = this.#buckets.get(route) ?? this.#add(route, { ...full, at: now });
    const seconds = Math.max(0, now - bucket.at) / 1000;
    bucket.frames = Math.min(full.frames, bucket.frames + seconds * this.#frames);
    bucket.bytes = Math.min(full.bytes, bucket.bytes + seconds * this.#bytes);
    bucket.at = now;
    if (bucket.frames < 1 || bucket.bytes < bytes) return false;
    bucket.frames -= 1;
    bucket.bytes -= bytes;
    return true;
  }

  #add(route: string, bucket: Bucket): Bucket {
    const [oldest] = this.#buckets.keys();
    if (this.#buckets.size >= MOST_CONNECTIONS && oldest !== undefined) this.#buckets.delete(oldest);
    this.#buckets.set(route, bucket);
    return bucket;
  }
}
