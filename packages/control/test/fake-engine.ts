import { type ControlMessage, decode, encode, PROTOCOL_VERSION } from "@triattn/protocol";
import { Context, Dealer } from "zeromq";

export const hello = {
  type: "hello",
  protocol: PROTOCOL_VERSION as number,
  engineId: "engine-1",
  engine: { name: "vllm", version: "0", runner: "v1", pid: 1, worldSize: 1 },
  model: {
    name: "m",
    fingerprint: "f",
    weights: null,
    layers: 1,
    queryHeads: 1,
    kvHeads: 1,
    headDim: 2,
    rotary: null,
  },
  cache: { blockSize: 32, blocks: 10, maxModelLen: 1000, dtype: "float32" },
  capabilities: [] as string[],
  revision: 0,
  nextEvent: 0n,
};

export type HelloMessage = typeof hello;
export type SetPolicy = Extract<ControlMessage, { type: "policy" }>;

interface Keys {
  readonly server: string;
  readonly publicKey: string;
  readonly secretKey: string;
}

/** An engine that does only what a test tells it to. */
export class FakeEngine implements AsyncDisposable {
  readonly received: ControlMessage[] = [];
  readonly socket: Dealer;
  readonly hello: HelloMessage;
  #arrived = Promise.withResolvers<void>();
  #read = 0;

  constructor(endpoint: string, changes: Partial<HelloMessage> = {}, keys?: Keys, deaf = false) {
    this.hello = { ...hello, ...changes };
    const curve = keys && {
      curveServerKey: keys.server,
      curvePublicKey: keys.publicKey,
      curveSecretKey: keys.secretKey,
    };
    this.socket = new Dealer({
      context: new Context({ blocky: false }),
      linger: 0,
      receiveHighWaterMark: deaf ? 1 : 1000,
      ...curve,
    });
    this.socket.connect(endpoint);
    if (!deaf) void this.listen();
  }

  async listen(): Promise<void> {
    try {
      for await (const [frame] of this.socket) {
        this.received.push(decode(frame as Buffer) as ControlMessage);
        this.#arrived.resolve();
        this.#arrived = Promise.withResolvers();
      }
    } catch {
      // Closed by the test.
    }
  }

  send(message: object): Promise<void> {
    return this.socket.send(encode(message));
  }

  greet(changes: Partial<HelloMessage> = {}): Promise<void> {
    return this.send({ ...this.hello, ...changes });
  }

  /** The next message of a type that has not been looked at; `identify` is passed over unless asked for. */
  async next<T extends ControlMessage["type"]>(type: T): Promise<Extract<ControlMessage, { type: T }>> {
    for (;;) {
      for (; this.#read < this.received.length; ) {
        const message = this.received[this.#read++] as ControlMessage;
        if (message.type === type) return message as Extract<ControlMessage, { type: T }>;
      }
      await this.#arrived.promise;
    }
  }

  async acknowledge(step: bigint): Promise<SetPolicy> {
    const policy = await this.next("policy");
    await this.send({ type: "ack", revision: policy.revision, step });
    return policy;
  }

  async refuse(): Promise<SetPolicy> {
    const policy = await this.next("policy");
    await this.send({
      type: "refusal",
      revision: policy.revision,
      field: "policy.budget",
      value: String(policy.policy.budget),
      remedy: "at least 256",
      message: "smaller than window + block",
    });
    return policy;
  }

  close(): void {
    this.socket.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }
}
