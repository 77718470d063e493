import { REQUEST_HEADER, type RequestState } from "@triattn/protocol";
import { onTestFinished } from "vitest";
import type { ControlPlane, ControlPlaneOptions } from "../../src/index.ts";
import { FakeEngine, type HelloMessage } from "../fake-engine.ts";
import { eventually, startPlane } from "../helpers.ts";

export const counters = {
  step: 7n,
  running: 1,
  waiting: 0,
  residentTokens: 100,
  peakResidentTokens: 100,
  usedBlocks: 8,
  peakUsedBlocks: 8,
  tokensGenerated: 2n ** 60n,
  requestsFinished: 0n,
  preemptions: 0n,
  rounds: 1n,
  tokensEvicted: 5n,
  blocksReclaimed: 2n,
  roundsSkipped: 0n,
  roundBatches: 1n,
  planSeconds: 0.25,
  roundSeconds: 0.5,
  stallSeconds: 0.75,
  eventsDropped: 0n,
};

export const round = (request: string, step = 7n) => ({
  kind: "round" as const,
  step,
  request,
  revision: 1,
  budget: 512,
  computed: 700,
  evicted: 128,
  evictedTotal: 188,
  blocksReclaimed: 4,
  blocksCopied: 0,
});

export const requestState = (changes: Partial<RequestState> = {}): RequestState => ({
  request: "r1",
  state: "running",
  priority: 0,
  tags: [],
  rule: null,
  prompt: 100,
  computed: 5000,
  resident: 2100,
  budget: 2048,
  evictedTotal: 2900,
  rounds: 20,
  ...changes,
});

/** A control plane that serves HTTP on a free port. */
export async function startHttp(
  http: ControlPlaneOptions["http"] = {},
  options: ControlPlaneOptions = {},
): Promise<{ plane: ControlPlane; url: string }> {
  const plane = await startPlane({ policy: "random", ...options, http: { port: 0, ...http } });
  return { plane, url: plane.url as string };
}

/** An engine that is connected and uses the policy. */
export async function joined(plane: ControlPlane, changes: Partial<HelloMessage> = {}): Promise<FakeEngine> {
  const engine = new FakeEngine(plane.endpoint, changes);
  onTestFinished(() => engine.close());
  await engine.greet();
  await engine.acknowledge(1n);
  const id = engine.hello.engineId;
  await eventually(() => plane.engines().some(({ engineId, step }) => engineId === id && step === 1n));
  return engine;
}

export const json = (method: string, body: unknown, headers: Record<string, string> = {}): RequestInit => ({
  method,
  headers: { "content-type": "application/json", [REQUEST_HEADER]: "1", ...headers },
  body: typeof body === "string" ? body : JSON.stringify(body),
});

// biome-ignore lint/suspicious/noExplicitAny: whatever a test looks for in it.
export const body = (response: Response): Promise<any> => response.json();

export interface Message {
  readonly event: string;
  readonly id: string | undefined;
  // biome-ignore lint/suspicious/noExplicitAny: whatever a test looks for in it.
  readonly data: any;
}

/** Server-sent events of an URL, as they come. */
export class Reader {
  readonly messages: Message[] = [];
  readonly #abort = new AbortController();
  ended = false;

  static async open(url: string, headers: Record<string, string> = {}): Promise<Reader> {
    const reader = new Reader();
    onTestFinished(() => reader.close());
    const response = await fetch(url, { headers, signal: reader.#abort.signal });
    if (!response.ok || response.body === null)
      throw new Error(`${response.status}: ${await response.text()}`);
    void reader.#read(response.body).catch(() => {});
    return reader;
  }

  of(event: string): Message[] {
    return this.messages.filter((message) => message.event === event);
  }

  async next(event: string, condition: (message: Message) => boolean = () => true): Promise<Message> {
    await eventually(() => this.of(event).some(condition));
    return this.of(event).find(condition) as Message;
  }

  close(): void {
    this.#abort.abort();
  }

  async #read(body: ReadableStream<Uint8Array>): Promise<void> {
    let text = "";
    const decoder = new TextDecoder();
    try {
      for await (const chunk of body) {
        text += decoder.decode(chunk, { stream: true });
        const parts = text.split("\n\n");
        text = parts.pop() ?? "";
        for (const part of parts) this.#take(part);
      }
    } finally {
      this.ended = true;
    }
  }

  #take(part: string): void {
    const fields = new Map(part.split("\n").map((line) => line.split(/: (.*)/s, 2) as [string, string]));
    const data = fields.get("data");
    if (data === undefined) return;
    this.messages.push({
      event: fields.get("event") ?? "message",
      id: fields.get("id"),
      data: JSON.parse(data),
    });
  }
}
