import { setTimeout as sleep } from "node:timers/promises";
import { type ControlMessage, decode, EngineMessage, encode, PROTOCOL_VERSION } from "@triattn/protocol";
import { Context, type Observer, Router } from "zeromq";
import { authenticate, type CurveOptions, checkCurve } from "./curve.ts";
import type { Drops } from "./drops.ts";
import { type Endpoint, prepareEndpoint } from "./endpoint.ts";
import { EndpointError } from "./errors.ts";
import { FloodGate, type LinkLimits } from "./flood.ts";

/** Bytes of the largest message that either side sends. */
export const MAX_FRAME = 1 << 20;

/** Messages waiting for the socket, over all engines: policies are few and far between. */
const MAX_OUTBOX = 4096;

/** For the observer's last event, which comes at once if at all. */
const OBSERVER_MS = 200;

/** What became of a message: queued for the engine; no such peer; or the peer does not read. */
export type SendResult = "sent" | "gone" | "full";

export interface EngineSocketOptions {
  readonly endpoint: string | undefined;
  readonly curve: CurveOptions | undefined;
  readonly drops: Drops;
  readonly limits?: LinkLimits | undefined;
  onMessage(route: string, message: EngineMessage): void;
  /** Some connection ended; the socket does not know whose. */
  onDisconnect(): void;
}

interface Outgoing {
  readonly route: string;
  readonly message: ControlMessage;
  done(result: SendResult): void;
}

/** The ROUTER that engines connect to: frames in, checked messages out. A route is a peer's id in hex. */
export class EngineSocket {
  readonly address: string;
  readonly #options: EngineSocketOptions;
  readonly #router: Router;
  readonly #endpoint: Endpoint;
  readonly #authenticator: { close(): void } | undefined;
  readonly #outbox: Outgoing[] = [];
  readonly #receiving: Promise<void>;
  readonly #observer: Observer;
  readonly #observing: Promise<void>;
  readonly #flood: FloodGate;
  #sending = false;
  #received = 0;

  static async open(options: EngineSocketOptions): Promise<EngineSocket> {
    const { curve, drops } = options;
    if (curve !== undefined) checkCurve(curve);
    const endpoint = await prepareEndpoint(options.endpoint, curve !== undefined);
    // A context of its own, so that several control planes of one process can each authenticate.
    const context = new Context({ blocky: false });
    const router = new Router({
      context,
      linger: 0,
      // Without it a message to an engine that is gone, or does not read, vanishes without a word.
      mandatory: true,
      sendTimeout: 0,
      sendHighWaterMark: 64,
      receiveHighWaterMark: 1000,
      // Beyond this libzmq drops the connection; between the two the frame is counted.
      maxMessageSize: 4 * MAX_FRAME,
      heartbeatInterval: 5000,
      heartbeatTimeout: 20000,
      ...(curve === undefined
        ? {}
        : { curveServer: true, curveSecretKey: curve.server.secretKey, zapDomain: "triattn" }),
    });
    let authenticator: { close(): void } | undefined;
    try {
      if (curve !== undefined) {
        authenticator = await authenticate(context, curve.engines, () =>
          drops.count("unauthenticated", "a key that is not among curve.engines"),
        );
      }
      await router.bind(endpoint.address);
      endpoint.protect();
    } catch (cause) {
      authenticator?.close();
      router.close();
      const busy = (cause as NodeJS.ErrnoException).code === "EADDRINUSE";
      const remedy = busy
        ? "another address: this one is in use"
        : `an address to listen at (${String(cause)})`;
      throw new EndpointError("endpoint", endpoint.address, remedy, { cause });
    }
    return new EngineSocket(options, endpoint, router, authenticator);
  }

  private constructor(
    options: EngineSocketOptions,
    endpoint: Endpoint,
    router: Router,
    authenticator: { close(): void } | undefined,
  ) {
    this.#options = options;
    this.#endpoint = endpoint;
    this.#flood = new FloodGate(options.limits);
    this.#router = router;
    this.#authenticator = authenticator;
    this.address = endpoint.address.startsWith("tcp://")
      ? (router.lastEndpoint ?? endpoint.address)
      : endpoint.address;
    this.#observer = router.events;
    this.#observing = this.#observe();
    this.#receiving = this.#receive();
  }

  /** Frames that have arrived, good or bad. */
  get received(): number {
    return this.#received;
  }

  send(route: string, message: ControlMessage): Promise<SendResult> {
    if (this.#outbox.length >= MAX_OUTBOX || this.#router.closed) return Promise.resolve("full");
    return new Promise((done) => {
      this.#outbox.push({ route, message, done });
      if (!this.#sending) void this.#drain();
    });
  }

  async close(): Promise<void> {
    this.#authenticator?.close();
    this.#router.close();
    await this.#receiving;
    // zeromq.js can miss the observer's last event, and then polls for it, and keeps the process, for ever. Closing
    // the observer before libzmq has sent that event would block libzmq instead; so first one, then the other.
    await Promise.race([this.#observing, sleep(OBSERVER_MS)]);
    this.#observer.close();
    await this.#observing;
    for (const { done } of this.#outbox.splice(0)) done("gone");
    this.#endpoint.remove();
  }

  /** The socket takes one send at a time. */
  async #drain(): Promise<void> {
    this.#sending = true;
    for (let next = this.#outbox.shift(); next !== undefined; next = this.#outbox.shift()) {
      next.done(await this.#transmit(next.route, encode(next.message)));
    }
    this.#sending = false;
  }

  async #transmit(route: string, frame: Uint8Array): Promise<SendResult> {
    try {
      await this.#router.send([Buffer.from(route, "hex"), frame]);
      return "sent";
    } catch (error) {
      return (error as NodeJS.ErrnoException).code === "EAGAIN" ? "full" : "gone";
    }
  }

  async #observe(): Promise<void> {
    // Not its event emitter, which would throw where nobody catches when the observer is closed.
    while (!this.#observer.closed) {
      const event = await this.#observer.receive().catch(() => undefined);
      if (event?.type === "disconnect") this.#options.onDisconnect();
    }
  }

  async #receive(): Promise<void> {
    while (!this.#router.closed) {
      let frames: Buffer[];
      try {
        frames = await this.#router.receive();
      } catch {
        // Closed under us, or a signal: the loop's condition tells which.
        continue;
      }
      this.#received += 1;
      const message = this.#check(frames);
      if (message !== undefined) this.#options.onMessage(message.route, message.message);
    }
  }

  #check([peer, ...payload]: Buffer[]): { route: string; message: EngineMessage } | undefined {
    const { drops } = this.#options;
    const frame = payload[0];
    if (peer === undefined || frame === undefined || payload.length !== 1) {
      return void drops.count("framing", `${payload.length} frames`);
    }
    const route = peer.toString("hex");
    if (!this.#flood.admit(route, frame.length)) {
      return void drops.count("flooding", `${frame.length} bytes from ${route}`);
    }
    if (frame.length > MAX_FRAME) {
      return void drops.count("oversized", `${frame.length} bytes, more than ${MAX_FRAME}`);
    }
    let value: unknown;
    try {
      value = decode(frame);
    } catch (error) {
      return void drops.count("malformed", String(error));
    }
    const version = otherVersion(value);
    if (version !== undefined) {
      drops.count("version", `protocol ${version}`);
      const message = `this control plane speaks protocol ${PROTOCOL_VERSION}, the engine's plugin ${version}: use the same release of triattn on both sides`;
      void this.send(route, { type: "rejected", message });
      return undefined;
    }
    const parsed = EngineMessage.safeParse(value);
    if (!parsed.success) {
      const issue = parsed.error.issues[0];
      return void drops.count("invalid", `${issue?.path.join(".")}: ${issue?.message}`);
    }
    return { route, message: parsed.data };
  }
}

function otherVersion(value: unknown): string | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  const { type, protocol } = value as { type?: unknown; protocol?: unknown };
  if (type !== "hello" || protocol === undefined || protocol === PROTOCOL_VERSION) return undefined;
  return String(protocol).slice(0, 40);
}
