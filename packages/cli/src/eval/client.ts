import { Agent, type ClientRequest, type IncomingMessage, request } from "node:http";
import { text } from "node:stream/consumers";
import { createParser } from "eventsource-parser";
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

/** Not fetch: it gives up on answers that take longer than five minutes. Resolves once the engine begins to answer. */
async function ask(
  url: string,
  path: string,
  body: unknown,
  id: string | undefined,
): Promise<{ sent: ClientRequest; response: IncomingMessage }> {
  const data = JSON.stringify(body);
  const headers = {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(data),
    ...(id === undefined ? {} : { "x-request-id": id }),
  };
  const sent = request(`${url}${path}`, { method: "POST", headers, agent });
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    sent.on("error", reject);
    sent.once("response", resolve);
    sent.end(data);
  });
  const { statusCode = null } = response;
  if (statusCode === 200) return { sent, response };
  const answer = await text(response);
  throw new EngineAnswer(`the engine answered ${statusCode}: ${answer.slice(0, 500)}`, statusCode);
}

function parse(answer: string): unknown {
  try {
    return JSON.parse(answer);
  } catch {
    throw new EngineAnswer(`the engine answered no JSON: ${answer.slice(0, 200)}`);
  }
}

export async function post(url: string, path: string, body: unknown, id?: string): Promise<unknown> {
  const { response } = await ask(url, path, body, id);
  return parse(await text(response));
}

/** Posts what is answered by its status alone. */
export async function tell(url: string, path: string, body: unknown): Promise<void> {
  const { response } = await ask(url, path, body, undefined);
  await text(response);
}

/** As post, for an answer that comes in parts: `onPart` says by true that it has seen enough, and the connection closes. */
export async function postStream(
  url: string,
  path: string,
  body: unknown,
  id: string,
  onPart: (part: unknown) => boolean,
): Promise<void> {
  const { sent, response } = await ask(url, path, body, id);
  const parts: string[] = [];
  const parser = createParser({ onEvent: ({ data }) => parts.push(data) });
  try {
    for await (const chunk of response.setEncoding("utf8")) {
      parser.feed(chunk as string);
      for (const data of parts.splice(0)) {
        if (data === "[DONE]") continue;
        const part = parse(data);
        const { error } = part as { readonly error?: { readonly message?: string } };
        if (error !== undefined)
          throw new EngineAnswer(`the engine gave up on ${id}: ${error.message ?? ""}`);
        if (onPart(part)) return;
      }
    }
  } finally {
    sent.destroy();
  }
}

/** Whether one of the tokens, from an index on, is not the expected one. */
export function isWrong(tokens: readonly number[], expected: readonly number[], from: number): boolean {
  return tokens.slice(from).some((token, index) => token !== expected[from + index]);
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
