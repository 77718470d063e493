import { Agent, request } from "node:http";
import type { Item, Reply, Tokenizer } from "./task.ts";

/** The engine answered, and not with what was asked for. */
export class EngineAnswer extends Error {
  override name = "EngineAnswer";
  /** HTTP status; null where it answered with 200. */
  readonly status: number | null;

  constructor(message: string, status: number | null = null) {
    super(message);
    this.status = status;
  }
}

/** What an evaluation asks of an engine's server, whichever engine it is. */
export interface EngineClient {
  readonly tokenizer: Tokenizer;
  /**
   * One completion of token ids, inside `budget` resident tokens (0: all); the engine's events call it `id`.
   * Rejects with EngineAnswer, or as the connection does.
   */
  complete(item: Item, budget: number, id: string): Promise<Reply>;
}

/** A connection a request: servers close idle ones after seconds, and a request that is sent just then is lost. */
const agent = new Agent({ keepAlive: false, maxSockets: Number.POSITIVE_INFINITY });

/** Not fetch: it gives up on answers that take longer than five minutes. */
export function post(url: string, path: string, body: unknown, id?: string): Promise<unknown> {
  const data = JSON.stringify(body);
  const headers = {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(data),
    ...(id === undefined ? {} : { "x-request-id": id }),
  };
  return new Promise((resolve, reject) => {
    const sent = request(`${url}${path}`, { method: "POST", headers, agent }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("error", reject);
      response.once("end", () => {
        const text = Buffer.concat(chunks).toString();
        if (response.statusCode !== 200) {
          const { statusCode = null } = response;
          reject(new EngineAnswer(`the engine answered ${statusCode}: ${text.slice(0, 500)}`, statusCode));
          return;
        }
        try {
          resolve(JSON.parse(text));
        } catch {
          reject(new EngineAnswer(`the engine answered no JSON: ${text.slice(0, 200)}`));
        }
      });
    });
    sent.on("error", reject);
    sent.end(data);
  });
}

/** The model's tokenizer, as the engine has it: both engines serve `/tokenize` in the same form. */
export function tokenizerOf(url: string, model: string): Tokenizer {
  const tokenize = async (body: object) => {
    const { tokens } = (await post(url, "/tokenize", { model, ...body })) as { tokens: readonly number[] };
    return tokens;
  };
  return {
    encode: (prompt) => tokenize({ prompt, add_special_tokens: false }),
    chat: (content) => tokenize({ messages: [{ role: "user", content }], add_generation_prompt: true }),
  };
}
