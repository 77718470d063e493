/**
 * A bounded queue between one producer that never waits and one consumer that may be slow.
 * When it is full the oldest item goes; the consumer gets `overflow(count)` in its place.
 */
export class EventStream<T> implements AsyncIterableIterator<T, undefined> {
  readonly #capacity: number;
  readonly #overflow: (dropped: number) => T;
  readonly #onEnd: (stream: EventStream<T>) => void;
  #items: T[] = [];
  /** Index of the oldest item: shifting a long array is slow. */
  #head = 0;
  #dropped = 0;
  #ended = false;
  #waiting: ((result: IteratorResult<T, undefined>) => void)[] = [];

  constructor(
    capacity: number,
    overflow: (dropped: number) => T,
    onEnd: (stream: EventStream<T>) => void = () => {},
  ) {
    this.#capacity = capacity;
    this.#overflow = overflow;
    this.#onEnd = onEnd;
  }

  /** Returns the number of items dropped to make room: 0 or 1. */
  push(item: T): number {
    if (this.#ended) return 0;
    const waiting = this.#waiting.shift();
    if (waiting !== undefined) {
      waiting({ done: false, value: item });
      return 0;
    }
    this.#items.push(item);
    if (this.#items.length - this.#head <= this.#capacity) return 0;
    this.#take();
    this.#dropped += 1;
    return 1;
  }

  /** No more items come; those in the queue are still delivered. */
  end(): void {
    this.#ended = true;
    for (const waiting of this.#waiting.splice(0)) waiting({ done: true, value: undefined });
    this.#onEnd(this);
  }

  next(): Promise<IteratorResult<T, undefined>> {
    if (this.#dropped > 0) {
      const value = this.#overflow(this.#dropped);
      this.#dropped = 0;
      return Promise.resolve({ done: false, value });
    }
    if (this.#head < this.#items.length) return Promise.resolve({ done: false, value: this.#take() });
    if (this.#ended) return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  return(): Promise<IteratorResult<T, undefined>> {
    this.#items = [];
    this.#head = 0;
    this.#dropped = 0;
    this.end();
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  #take(): T {
    const item = this.#items[this.#head] as T;
    this.#items[this.#head] = undefined as T;
    this.#head += 1;
    if (this.#head > 1024 && this.#head * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return item;
  }
}
