import { ConfigError } from "@triattn/control";
import { EngineAnswer, type EngineClient, isWrong, post, postStream, tell, tokenizerOf } from "./client.ts";
import type { Item, PositionLogprobs, Reply } from "./task.ts";

/** A log-probability as SGLang lists it: value, token id, text (not asked for). */
type Listed = readonly [logprob: number | null, token: number, text: string | null];

interface Generated {
  readonly text: string;
  /** All of them so far, also where an answer is streamed. */
  readonly output_ids?: readonly number[];
  readonly meta_info: {
    readonly finish_reason: {
      readonly type: string;
      readonly message?: string;
      /** The token or text that ended it. */
      readonly matched?: number | string;
    } | null;
    /** One entry a prompt token, the first without a value. */
    readonly input_token_logprobs?: readonly Listed[];
    readonly input_top_logprobs?: readonly (readonly Listed[] | null)[];
  };
}

const NOT_A_TOKEN = "NaN happened";

/** An item's sampling settings by SGLang's names for them. */
function samplingOf({ seed, ...sampling }: NonNullable<Item["sampling"]>): Record<string, number | boolean> {
  return seed === undefined ? sampling : { ...sampling, sampling_seed: seed };
}

/** As the tasks read them: by token id, the prompt's own token among the likeliest ones. */
function positions({ input_token_logprobs: own, input_top_logprobs: top }: Generated["meta_info"]) {
  if (own === undefined || top === undefined || own.length !== top.length) {
    throw new EngineAnswer("the engine answered without log-probabilities of the prompt");
  }
  return own.map((token, at): PositionLogprobs | null => {
    const listed = [...(top[at] ?? []), token].filter(([logprob]) => logprob !== null);
    if (listed.length === 0) return null;
    return Object.fromEntries(listed.map(([logprob, id]) => [String(id), { logprob: logprob as number }]));
  });
}

/** SGLang cannot write its answer where the tokenizer's limit, of which nobody asked, is beyond 64 bits. */
function withoutLimit(error: unknown): never {
  if (!(error instanceof EngineAnswer && error.status === 500)) throw error;
  throw new ConfigError(
    "model",
    "/tokenize answered 500",
    "SGLang does so where tokenizer_config.json has no model_max_length, or one beyond 64 bits: write one into it",
    { cause: error },
  );
}

/**
 * SGLang by its own `/generate`, not its OpenAI completions: only that gives the exact ids of an answer, its end token
 * included. The budget is in `custom_params`, and `rid` is what the engine's events call the request.
 */
export function sglangClient(url: string, model: string): EngineClient {
  /** A generation that ends where it is wrong: what came by then. SGLang takes seconds to miss a client that left. */
  const until = async (expected: readonly number[], body: object, id: string): Promise<Generated> => {
    let last: Generated | undefined;
    let wrong = false;
    await postStream(url, "/generate", { ...body, stream: true }, id, (part) => {
      const from = last?.output_ids?.length ?? 0;
      last = part as Generated;
      wrong = isWrong(last.output_ids ?? [], expected, from);
      return wrong;
    });
    if (last === undefined) throw new EngineAnswer(`the engine's answer to ${id} is empty`);
    const ended = last.meta_info.finish_reason != null;
    if (!ended && !wrong) throw new EngineAnswer(`the engine's answer to ${id} has no end`);
    if (!ended) await tell(url, "/abort_request", { rid: id });
    return last;
  };
  const complete = async (item: Item, budget: number, id: string): Promise<Reply> => {
    const body = {
      rid: id,
      input_ids: item.prompt,
      sampling_params: {
        temperature: 0,
        ...(item.sampling === undefined ? {} : samplingOf(item.sampling)),
        max_new_tokens: item.maxTokens,
        custom_params: { triattn_budget: budget },
      },
      ...(item.promptLogprobs === undefined
        ? {}
        : { return_logprob: true, logprob_start_len: 0, top_logprobs_num: item.promptLogprobs }),
    };
    const { expected } = item;
    const generated =
      expected === undefined ? await post(url, "/generate", body) : await until(expected, body, id);
    const { text, output_ids: tokens, meta_info: about } = generated as Generated;
    if (tokens === undefined) throw new EngineAnswer("the engine answered without token ids");
    const { type: finish = "", message, matched } = about.finish_reason ?? {};
    if (expected !== undefined && about.finish_reason == null) {
      return { text, tokens, finish: "wrong", promptLogprobs: null };
    }
    // An end token that it puts in the place of one that is none looks like an end, too.
    if ((finish !== "stop" && finish !== "length") || matched === NOT_A_TOKEN) {
      throw new EngineAnswer(`the engine ended ${id} by ${finish}: ${message ?? matched ?? ""}`);
    }
    // It cuts what does not fit its pool or context, and says nothing.
    if (finish === "length" && tokens.length < item.maxTokens) {
      throw new EngineAnswer(
        `the engine cut ${id} after ${tokens.length} of ${item.maxTokens} tokens: a prompt of ${item.prompt.length} ` +
          "and its answer need a larger --max-total-tokens or --context-length",
      );
    }
    return {
      text,
      tokens,
      finish,
      promptLogprobs: item.promptLogprobs === undefined ? null : positions(about),
    };
  };
  const { encode, chat } = tokenizerOf(url, model);
  return {
    complete,
    tokenizer: {
      encode: (text) => encode(text).catch(withoutLimit),
      chat: (question) => chat(question).catch(withoutLimit),
    },
  };
}
