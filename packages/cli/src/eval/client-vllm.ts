import { EngineAnswer, type EngineClient, post, tokenizerOf } from "./client.ts";
import type { Item, Reply } from "./task.ts";

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
