import { Agent, request } from "node:http";
import type { Item, Reply, Tokenizer } from "./task.ts";

/** The engine answered, and not with what was asked for. */
export class EngineAnswer extends Error {
  override name = "EngineAnswer";
}

const agent = new Agent({ keepAlive: true, maxSockets: Number.POSITIVE_INFINITY });

/** Not fetch: it gives up on answers that take longer than five minutes. */
function post(url: string, path: string, body: unknown, id?: string): Promise<unknown> {
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
          reject(new EngineAnswer(`the engine answered ${response.statusCode}: ${text.slice(0, 500)}`));
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

interface Completion {
  readonly choices: readonly {
    readonly text: string;
    readonly finish_reason: string;
    readonly token_ids?: readonly number[] | null;
    readonly prompt_logprobs?: Reply["promptLogprobs"];
  }[];
}

/** One completion of token ids, inside `budget` resident tokens (0: all). Rejects with EngineAnswer. */
export async function complete(
  url: string,
  model: string,
  item: Item,
  budget: number,
  id: string,
): Promise<Reply> {
  const body = {
    model,
    prompt: item.prompt,
    max_tokens: item.maxTokens,
    temperature: 0,
    ...item.sampling,
    return_token_ids: true,
    ...(item.promptLogprobs === undefined ? {} : { prompt_logprobs: item.promptLogprobs }),
    vllm_xargs: { triattn_budget: budget },
  };
  const { choices } = (await post(url, "/v1/completions", body, id)) as Completion;
  const [choice] = choices;
  if (choice?.token_ids == null) throw new EngineAnswer("the engine answered without token ids");
  return {
    text: choice.text,
    tokens: choice.token_ids,
    finish: choice.finish_reason,
    promptLogprobs: choice.prompt_logprobs ?? null,
  };
}

/** The model's tokenizer, as the engine has it. */
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
