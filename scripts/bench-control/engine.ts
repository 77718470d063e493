import { decode, encode, PROTOCOL_VERSION } from "@triattn/protocol";
import { Context, Dealer } from "zeromq";

/** How an engine of the field reports: see kernels/triattn/link.py and engines/vllm/scheduler.py. */
const FLUSH_MS = 50;
const REPORT_MS = 500;

export interface Load {
  /** Rounds a second. */
  readonly rounds: number;
  /** Requests that run. */
  readonly requests: number;
}

/** An engine that reports as a loaded one would, and computes nothing. */
export class LoadedEngine {
  readonly #socket: Dealer;
  readonly #load: Load;
  readonly #timers: NodeJS.Timeout[] = [];
  #events = 0n;
  #due = 0;
  #watched = 0;
  #queue: Promise<unknown> = Promise.resolve();

  constructor(endpoint: string, load: Load) {
    this.#load = load;
    this.#socket = new Dealer({ context: new Context({ blocky: false }), linger: 0 });
    this.#socket.connect(endpoint);
    void this.#listen();
    this.#send({
      type: "hello",
      protocol: PROTOCOL_VERSION,
      engineId: `load-${process.pid}-${Math.random().toString(16).slice(2)}`,
      engine: { name: "vllm", version: "0", runner: "v2", pid: process.pid, worldSize: 1 },
      model: {
        name: "org/model",
        fingerprint: "0",
        weights: null,
        layers: 36,
        queryHeads: 32,
        kvHeads: 8,
        headDim: 128,
        rotary: null,
      },
      cache: { blockSize: 16, blocks: 100_000, maxModelLen: 65536, dtype: "bfloat16" },
      capabilities: [],
      revision: 0,
      nextEvent: 0n,
    });
    this.#timers.push(setInterval(() => this.#flush(), FLUSH_MS));
    this.#timers.push(setInterval(() => this.#report(), REPORT_MS));
  }

  close(): void {
    for (const timer of this.#timers) clearInterval(timer);
    this.#socket.close();
  }

  /** A socket takes one message at a time. */
  #send(message: object): void {
    this.#queue = this.#queue.then(() => this.#socket.send(encode(message))).catch(() => {});
  }

  async #listen(): Promise<void> {
    try {
      for await (const [frame] of this.#socket) {
        const message = decode(frame as Buffer) as { type: string; revision?: number; seconds?: number };
        if (message.type === "policy") this.#send({ type: "ack", revision: message.revision, step: 1n });
        if (message.type === "watch") this.#watched = performance.now() + (message.seconds ?? 0) * 1000;
      }
    } catch {
      // Closed.
    }
  }

  #flush(): void {
    this.#due += (this.#load.rounds * FLUSH_MS) / 1000;
    const count = Math.floor(this.#due);
    this.#due -= count;
    if (count === 0) return;
    const events = Array.from({ length: count }, (_, i) => ({
      kind: "round",
      step: this.#events,
      request: `cmpl-${"0123456789abcdef".repeat(2)}-${i}`,
      revision: 1,
      budget: 2048,
      computed: 9000,
      evicted: 128,
      evictedTotal: 6900,
      blocksReclaimed: 8,
      blocksCopied: 0,
    }));
    this.#send({ type: "events", first: this.#events, events });
    this.#events += BigInt(count);
  }

  #report(): void {
    const count = this.#events;
    const none = { requestsFinished: 0n, preemptions: 0n, roundsSkipped: 0n, eventsDropped: 0n };
    const gauges = { residentTokens: 2_000_000, peakResidentTokens: 2_100_000, usedBlocks: 90_000 };
    this.#send({
      type: "counters",
      counters: {
        ...none,
        ...gauges,
        peakUsedBlocks: 95_000,
        step: count,
        running: this.#load.requests,
        waiting: 0,
        tokensGenerated: count * 128n,
        rounds: count,
        tokensEvicted: count * 128n,
        blocksReclaimed: count * 8n,
        roundBatches: count,
        planSeconds: Number(count) * 1e-5,
        roundSeconds: Number(count) * 1e-4,
        stallSeconds: Number(count) * 1e-4,
      },
    });
    if (performance.now() > this.#watched) return;
    const requests = Array.from({ length: this.#load.requests }, (_, i) => ({
      request: `cmpl-${"0123456789abcdef".repeat(2)}-${i}`,
      state: "running",
      priority: 0,
      tags: [],
      rule: null,
      prompt: 512,
      computed: 9000 + Number(count % 1000n),
      resident: 2048 + Number(count % 128n),
      budget: 2048,
      evictedTotal: 6900,
      rounds: 54,
    }));
    this.#send({ type: "requests", step: count, requests, omitted: 0 });
  }
}
