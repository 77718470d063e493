import { Agent, request } from "node:http";
import { request as requestTls } from "node:https";
import { requestOptions } from "@triattn/control";
import { createParser } from "eventsource-parser";

/** One streamed completion, times in milliseconds of performance.now(). */
export interface Sample {
  readonly start: number;
  /** When each piece of the answer arrived. */
  readonly arrivals: readonly number[];
  readonly end: number;
  readonly promptTokens: number;
  readonly tokens: number;
}

export interface Job {
  readonly prompt: readonly number[];
  readonly maxTokens: number;
  readonly ignoreEos: boolean;
  /** The request's own budget; undefined: what the server has. */
  readonly budget: number | undefined;
  /** Which field carries it. */
  readonly engine: "vllm" | "sglang";
}

/** A connection for each request: servers close idle ones, and a request that meets that would count as failed. */
const agent = new Agent({ keepAlive: false, maxSockets: Number.POSITIVE_INFINITY });

interface Chunk {
  readonly choices?: readonly { readonly text?: string; readonly token_ids?: readonly number[] }[];
  readonly usage?: { readonly prompt_tokens: number; readonly completion_tokens: number } | null;
  readonly error?: { readonly message?: string };
}

/** Streams one completion of `/v1/completions`. Rejects with what went wrong. */
export function complete(url: string, model: string, job: Job, signal: AbortSignal): Promise<Sample> {
  const body = JSON.stringify({
    model,
    prompt: job.prompt,
    max_tokens: job.maxTokens,
    temperature: 0,
    ignore_eos: job.ignoreEos,
    stream: true,
    stream_options: { include_usage: true },
    ...(job.budget === undefined ? {} : requestOptions({ budget: job.budget, engine: job.engine })),
  });
  const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(body) };
  const tls = url.startsWith("https:");
  const options = { method: "POST", headers, signal, ...(tls ? {} : { agent }) };
  return new Promise((resolve, reject) => {
    const start = performance.now();
    const arrivals: number[] = [];
    let usage: Chunk["usage"];
    // Not fetch: it gives up on a server that lets a request wait for more than five minutes.
    const sent = (tls ? requestTls : request)(`${url}/v1/completions`, options, (response) => {
      response.setEncoding("utf8");
      response.on("error", reject);
      if (response.statusCode !== 200) {
        let text = "";
        response.on("data", (chunk: string) => {
          text += chunk;
        });
        response.once("end", () => reject(new Error(`${response.statusCode}: ${text.slice(0, 300)}`)));
        return;
      }
      const parser = createParser({
        onEvent: ({ data }) => {
          if (data === "[DONE]") return;
          const chunk = JSON.parse(data) as Chunk;
          if (chunk.error !== undefined) reject(new Error(chunk.error.message ?? "an error in the stream"));
          if (chunk.choices?.some(({ text }) => text !== undefined)) arrivals.push(performance.now());
          usage = chunk.usage ?? usage;
        },
      });
      response.on("data", (chunk: string) => {
        try {
          parser.feed(chunk);
        } catch (error) {
          reject(error as Error);
        }
      });
      response.once("end", () => {
        const end = performance.now();
        if (usage == null || arrivals.length === 0)
          return reject(new Error("a stream without tokens or usage"));
        resolve({ start, arrivals, end, promptTokens: usage.prompt_tokens, tokens: usage.completion_tokens });
      });
    });
    sent.on("error", reject);
    sent.end(body);
  });
}
