import { readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { type ControlPlane, createControlPlane } from "@triattn/control";
import { decode, encode } from "@triattn/protocol";
import { pino } from "pino";
import { Context, Dealer } from "zeromq";
import { hostileFrames, messages } from "./frames.ts";
import type { Chance } from "./random.ts";

/** Frames sent in one go, before the control plane is waited for. */
const BATCH = 2000;
const [hello] = messages as [Record<string, unknown>];

const start = () =>
  createControlPlane({
    policy: "random",
    logger: pino({ level: "silent" }),
    // The gate would keep most of it out.
    limits: { framesPerSecond: 1e9, bytesPerSecond: 1e12 },
  });

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;

/** Memory in use in MB, and open files. */
function resources(): { memory: number; files: number } {
  collectGarbage();
  return { memory: process.memoryUsage().rss / 1e6, files: readdirSync("/proc/self/fd").length };
}

/** An engine that does what it should. */
class GoodEngine {
  readonly #socket: Dealer;
  readonly #timer: NodeJS.Timeout;
  #queue: Promise<unknown> = Promise.resolve();

  constructor(context: Context, endpoint: string, engineId: string, pid = 1) {
    this.#socket = new Dealer({ context, linger: 0 });
    this.#socket.connect(endpoint);
    void this.#answer();
    const greeting = { ...hello, engineId, engine: { ...(hello.engine as object), pid } };
    this.#send(greeting);
    // Whoever says nothing for long is taken as gone.
    this.#timer = setInterval(() => this.#send({ type: "heartbeat", revision: 1, nextEvent: 0 }), 1000);
  }

  /** A socket takes one message at a time. */
  #send(message: object): void {
    this.#queue = this.#queue.then(() => this.#socket.send(encode(message))).catch(() => {});
  }

  async #answer(): Promise<void> {
    try {
      for await (const [frame] of this.#socket) {
        const message = decode(frame as Buffer) as { type: string; revision?: number };
        if (message.type === "policy") {
          this.#send({ type: "ack", revision: message.revision, step: 1 });
        }
      }
    } catch {
      // Closed.
    }
  }

  close(): void {
    clearInterval(this.#timer);
    this.#socket.close();
  }
}

async function until(condition: () => boolean, what: string): Promise<void> {
  const end = performance.now() + 60_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`${what} did not happen in a minute`);
    await sleep(2);
  }
}

export interface Frames {
  sent: number;
  dropped: Readonly<Record<string, number>>;
  /** Growth of memory over the second half, in MB. */
  growth: number;
}

/** Sends hostile frames; all along a good engine must be heard, and policies take effect. Throws when that fails. */
export async function tryFrames(chance: Chance, count: number): Promise<Frames> {
  const plane = await start();
  const context = new Context({ blocky: false });
  const good = new GoodEngine(context, plane.endpoint, "good");
  let hostile = new Dealer({ context, linger: 0 });
  hostile.connect(plane.endpoint);
  try {
    await plane.waitForEngine({ timeoutMs: 10_000 });
    let [sent, half] = [0, resources().memory];
    while (sent < count) {
      const before = plane.counters().link.framesReceived;
      const batch = Math.min(BATCH, count - sent);
      for (let i = 0; i < batch; i++) await hostile.send(hostileFrames(chance));
      sent += batch;
      await until(() => plane.counters().link.framesReceived >= before + batch, "reading all frames");
      // Its refusals, and those of policies that it did not acknowledge, must not stand in the way of the good one.
      if (chance.next() < 0.05) {
        hostile.close();
        hostile = new Dealer({ context, linger: 0 });
        hostile.connect(plane.endpoint);
      }
      await stillServes(plane);
      if (sent - batch < count / 2 && sent >= count / 2) half = resources().memory;
    }
    const dropped = { ...plane.counters().link.framesDropped };
    return { sent, dropped, growth: resources().memory - half };
  } finally {
    hostile.close();
    good.close();
    await plane.close();
  }
}

async function stillServes(plane: ControlPlane): Promise<void> {
  await until(() => {
    const good = plane.engines().find(({ engineId }) => engineId === "good");
    return good?.connected === true;
  }, "the good engine being connected");
  if (plane.engines().length > 300) throw new Error(`${plane.engines().length} engines are remembered`);
}

export interface Reconnects {
  cycles: number;
  /** Growth of memory over the second half, in MB, and of open files over all. */
  growth: number;
  files: number;
  engines: number;
}

/** An engine that connects, gets its policy and goes, again and again: as one that returns, and as new ones. */
export async function tryReconnects(count: number): Promise<Reconnects> {
  const plane = await start();
  const context = new Context({ blocky: false });
  const cycle = async (i: number) => {
    const id = i % 2 === 0 ? "returning" : `new-${i}`;
    const engine = new GoodEngine(context, plane.endpoint, id, i + 1);
    const now = () => plane.engines().find(({ engineId }) => engineId === id);
    await until(
      () => now()?.connected === true && now()?.hello.engine.pid === i + 1 && now()?.revision === 1,
      id,
    );
    engine.close();
    await until(() => now()?.connected !== true, `the end of ${id}`);
  };
  try {
    for (let i = 0; i < 20; i++) await cycle(i);
    const first = resources();
    let half = first;
    for (let i = 20; i < count; i++) {
      await cycle(i);
      if (i === Math.floor(count / 2)) half = resources();
    }
    const last = resources();
    return {
      cycles: count,
      growth: last.memory - half.memory,
      files: last.files - first.files,
      engines: plane.engines().length,
    };
  } finally {
    await plane.close();
  }
}
