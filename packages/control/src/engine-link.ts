import type { ControlMessage, EngineMessage, Events, Hello } from "@triattn/protocol";
import type { Logger } from "pino";
import type { CurveOptions } from "./curve.ts";
import type { Drops } from "./drops.ts";
import { EngineSocket, type SendResult } from "./engine-socket.ts";
import { Engine, Engines, MAX_CONNECTED } from "./engines.ts";
import type { LinkLimits } from "./flood.ts";
import type { PolicyRevision, PolicyStore } from "./policy-store.ts";
import { engineRules } from "./rules.ts";
import type { ControlEvent } from "./types.ts";

export interface EngineLinkOptions {
  readonly endpoint: string | undefined;
  readonly curve: CurveOptions | undefined;
  readonly store: PolicyStore;
  readonly drops: Drops;
  readonly limits?: LinkLimits | undefined;
  readonly logger: Logger;
  readonly silenceMs: number;
  publish(event: ControlEvent): void;
}

const TICK_MS = 250;
/** After a disconnection: until libzmq has forgotten the peer, and one probe for several at once. */
const PROBE_MS = 20;

/** Follows the engines: who is there, what they use, what they report. Everything it learns it publishes. */
export class EngineLink {
  readonly engines = new Engines();
  readonly #options: EngineLinkOptions;
  #socket!: EngineSocket;
  #ticker: NodeJS.Timeout | undefined;
  #probing: NodeJS.Timeout | undefined;
  #eventsReceived = 0n;
  #eventsLost = 0n;

  static async open(options: EngineLinkOptions): Promise<EngineLink> {
    const link = new EngineLink(options);
    link.#socket = await EngineSocket.open({
      endpoint: options.endpoint,
      curve: options.curve,
      drops: options.drops,
      limits: options.limits,
      onMessage: (route, message) => link.#receive(route, message),
      onDisconnect: () => {
        link.#probing ??= setTimeout(() => link.#probe(), PROBE_MS);
      },
    });
    link.#ticker = setInterval(() => link.#tick(), TICK_MS);
    return link;
  }

  private constructor(options: EngineLinkOptions) {
    this.#options = options;
  }

  get address(): string {
    return this.#socket.address;
  }

  get counts() {
    return {
      framesReceived: this.#socket.received,
      eventsReceived: this.#eventsReceived,
      eventsLost: this.#eventsLost,
    };
  }

  /** Sends the policy in force to every engine that has not been sent it. */
  deliver(): void {
    for (const engine of this.engines.connected()) void this.#deliver(engine);
  }

  /** Sends a message that need not arrive: it is sent again, or stands for itself. */
  send(engineId: string, message: ControlMessage): void {
    const engine = this.engines.get(engineId);
    if (engine !== undefined) void this.#reach(engine, message);
  }

  async close(): Promise<void> {
    clearInterval(this.#ticker);
    clearTimeout(this.#probing);
    await this.#socket.close();
  }

  #receive(route: string, message: EngineMessage): void {
    if (message.type === "hello") {
      void this.#greet(route, message);
      return;
    }
    const engine = this.engines.at(route);
    if (engine === undefined) {
      // We are newer than its connection, or its hello was not taken: let it introduce itself.
      this.#options.drops.count("unknown", `${message.type} before hello`);
      void this.#socket.send(route, { type: "identify" });
      return;
    }
    engine.lastSeen = performance.now();
    switch (message.type) {
      case "ack":
        engine.acknowledged = { revision: message.revision, step: message.step };
        this.#options.publish({ ...message, type: "acknowledged", engineId: engine.id });
        break;
      case "refusal":
        this.#options.logger.warn({ engineId: engine.id, ...message }, "an engine refused a policy");
        this.#options.publish({ ...message, type: "refused", engineId: engine.id });
        break;
      case "events":
        this.#take(engine, message);
        break;
      case "counters":
        engine.counters = message.counters;
        this.#options.publish({ type: "counters", engineId: engine.id, counters: message.counters });
        break;
      case "requests":
        this.#options.publish({ ...message, engineId: engine.id });
        break;
      case "kept":
        this.#options.publish({ ...message, engineId: engine.id });
        break;
      case "heartbeat":
        this.#expect(engine, message.nextEvent);
        break;
      case "bye":
        this.#gone(engine, message.reason);
        break;
      default:
        message satisfies never;
    }
  }

  async #greet(route: string, hello: Hello): Promise<void> {
    const known = this.engines.get(hello.engineId);
    if (known?.route !== undefined && known.route !== route && (await this.#isAnother(known, hello))) {
      this.#options.drops.count("duplicate", hello.engineId);
      const message = `an engine with the id ${hello.engineId} is connected: give each engine its own`;
      void this.#socket.send(route, { type: "rejected", message });
      return;
    }
    if (known?.route === undefined && this.engines.connected().length >= MAX_CONNECTED) {
      this.#options.drops.count("crowded", hello.engineId);
      const message = `${MAX_CONNECTED} engines are connected, which is as many as one control plane takes`;
      void this.#socket.send(route, { type: "rejected", message });
      return;
    }
    const former = this.engines.at(route);
    if (former !== undefined && former.id !== hello.engineId) {
      this.#gone(former, `its connection now says that it is ${hello.engineId}`);
    }
    const engine = known ?? new Engine(hello);
    const again = engine.route === route;
    engine.hello = hello;
    engine.lastSeen = performance.now();
    if (!again) this.engines.connect(engine, route);
    this.#expect(engine, hello.nextEvent);
    // A revision that we did not send comes from a control plane before us.
    const renumbered = hello.revision > engine.highestSent && this.#options.store.raise(hello.revision);
    if (!again) {
      this.#options.logger.info({ engineId: engine.id, engine: hello.engine }, "engine connected");
      this.#options.publish({ type: "connected", engine: engine.view() });
    }
    if (renumbered) this.deliver();
    else void this.#deliver(engine);
  }

  /** Whether a hello is of another process than the engine connected under the same id. */
  async #isAnother(engine: Engine, hello: Hello): Promise<boolean> {
    if (engine.hello.engine.pid === hello.engine.pid) return false;
    return (await this.#reach(engine, { type: "identify" })) !== "gone";
  }

  #take(engine: Engine, batch: Events): void {
    this.#expect(engine, batch.first);
    let number = engine.nextEvent;
    for (const event of engine.fresh(batch)) {
      this.#eventsReceived += 1n;
      this.#options.publish({ type: "event", engineId: engine.id, number, event });
      number += 1n;
    }
  }

  #expect(engine: Engine, number: bigint): void {
    const gap = engine.expect(number);
    if (gap === undefined) return;
    this.#eventsLost += gap.count;
    this.#options.publish({ type: "gap", engineId: engine.id, ...gap });
  }

  async #deliver(engine: Engine): Promise<void> {
    const current = this.#options.store.current;
    if (current === undefined || engine.sent === current.revision) return;
    engine.sent = current.revision;
    const result = await this.#reach(engine, asMessage(current, engine.hello.model.name));
    if (result === "sent") engine.highestSent = Math.max(engine.highestSent, current.revision);
    // It does not read: the next tick tries again.
    else if (result === "full" && engine.sent === current.revision) engine.sent = 0;
  }

  async #reach(engine: Engine, message: ControlMessage): Promise<SendResult> {
    const route = engine.route;
    if (route === undefined) return "gone";
    const result = await this.#socket.send(route, message);
    if (result === "gone" && engine.route === route) this.#gone(engine, "the connection ended");
    return result;
  }

  #gone(engine: Engine, reason: string): void {
    this.engines.disconnect(engine);
    this.#options.logger.info({ engineId: engine.id, reason }, "engine disconnected");
    this.#options.publish({ type: "disconnected", engineId: engine.id, reason });
  }

  /** Finds out who the connection that ended belonged to: libzmq does not say. */
  #probe(): void {
    this.#probing = undefined;
    for (const engine of this.engines.connected()) void this.#reach(engine, { type: "identify" });
  }

  #tick(): void {
    const oldest = performance.now() - this.#options.silenceMs;
    for (const engine of this.engines.connected()) {
      if (engine.lastSeen < oldest) this.#gone(engine, `silent for ${this.#options.silenceMs} ms`);
    }
    this.deliver();
  }
}

/** The store's revisions are frozen all the way down, which the message's type cannot say. */
function asMessage({ revision, policy, statistics, rules }: PolicyRevision, model: string): ControlMessage {
  return { type: "policy", revision, policy, statistics, ...engineRules(rules, model) };
}
