/**
 * A budget and tags of one request's own, by the OpenAI client.
 *
 *     node --import tsx examples/openai-client.ts URL MODEL [vllm|sglang]
 */
import OpenAI from "openai";
import { requestOptions } from "triattn";

const [url, model, engine = "vllm"] = process.argv.slice(2);
if (url === undefined || model === undefined || (engine !== "vllm" && engine !== "sglang")) {
  throw new Error("usage: openai-client.ts URL MODEL [vllm|sglang]");
}

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const answer = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: "Tell me a long story." }],
  max_completion_tokens: 64,
  ...requestOptions({ budget: 512, tags: ["batch", "low"], engine }),
});
console.log(answer.choices[0]?.message.content);
