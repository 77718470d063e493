import { EngineAnswer, type EngineClient, isWrong, post, postStream, tokenizerOf } from "./client.ts";
import type { Item, Reply } from "./task.ts";

/** A part of a streamed completion, with the tokens that came since the last one. */
interface Part {
  readonly choices?: readonly {
    readonly text: string;
    readonly finish_reason: string | null;
    readonly token_ids?: readonly number[] | null;
  }[];
}

interface Completion {
  readonly choices: readonly {
    readonly text: string;
    readonly finish_reason: string;
    readonly token_ids?: readonly number[] | null;
    readonly prompt_logprobs?: Reply["promptLogprobs"];
  }[];
}

/** vLLM by its OpenAI completions: prompts and answers as token ids, the budget in `vllm_xargs`. */
export function vllmClient(url: string, model: string): EngineClient {
  /** A completion that ends where it is wrong: vLLM aborts a request whose connection closes. */
  const until = async (expected: readonly number[], body: object, id: string): Promise<Reply> => {
    const tokens: number[] = [];
    let text = "";
    let finish: string | null = null;
    let wrong = false;
    await postStream(url, "/v1/completions", { ...body, stream: true }, id, (part) => {
      const { choices } = part as Part;
      const [choice] = choices ?? [];
      if (choice === undefined) return false;
      const from = tokens.length;
      tokens.push(...(choice.token_ids ?? []));
      text += choice.text;
      finish = choice.finish_reason ?? finish;
      wrong = isWrong(tokens, expected, from);
      return wrong;
    });
    if (finish === null && !wrong) throw new EngineAnswer(`the engine's answer to ${id} has no end`);
    return { text, tokens, finish: finish ?? "wrong", promptLogprobs: null };
  };
  const complete = async (item: Item, budget: number, id: string): Promise<Reply> => {
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
    if (item.expected !== undefined) return until(item.expected, body, id);
    const { choices } = (await post(url, "/v1/completions", body, id)) as Completion;
    const [choice] = choices;
    if (choice?.token_ids == null) throw new EngineAnswer("the engine answered without token ids");
    return {
      text: choice.text,
      tokens: choice.token_ids,
      finish: choice.finish_reason,
      promptLogprobs: choice.prompt_logprobs ?? null,
    };
  };
  return { complete, tokenizer: tokenizerOf(url, model) };
}
