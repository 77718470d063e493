import { request } from "node:http";

/** What a chat completion returned. */
export interface Answer {
  readonly text: string;
  /** Tokens generated, as the engine counts them. */
  readonly tokens: number;
}

const TOPICS = [
  "how a lighthouse works",
  "the water cycle",
  "how bread is baked",
  "the history of Rome",
  "how a sailing ship is steered",
  "photosynthesis",
  "a journey through Norway",
  "how clocks were invented",
  "the life of a river",
  "how music is written down",
  "what bees do in a year",
  "how bridges are built",
  "the planets of the solar system",
  "how paper is made",
  "the story of a fox in winter",
  "how a city gets its water",
];

/** The demo's questions: the same ones in every arm. */
export function questions(count: number): string[] {
  return Array.from({ length: count }, (_, i) => {
    const again = i < TOPICS.length ? "" : ` Version ${Math.floor(i / TOPICS.length) + 1}.`;
    return `Write a long and detailed text about ${TOPICS[i % TOPICS.length]}.${again}`;
  });
}

/** Longest prompt of the demo with the model's chat template, in tokens, with room to spare. */
export const PROMPT_TOKENS = 96;

/** One chat generation of exactly `tokens` tokens. Rejects when the engine does not answer, or not with them. */
export function ask(url: string, model: string, question: string, tokens: number): Promise<Answer> {
  const body = JSON.stringify({
    model,
    messages: [{ role: "user", content: question }],
    temperature: 0,
    // So that both arms generate as much, whatever they say.
    max_tokens: tokens,
    ignore_eos: true,
  });
  return new Promise((resolve, reject) => {
    // Not fetch: it gives up on answers that take longer than five minutes.
    const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(body) };
    const sent = request(`${url}/v1/chat/completions`, { method: "POST", headers }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("error", reject);
      response.once("end", () => {
        const text = Buffer.concat(chunks).toString();
        if (response.statusCode !== 200) {
          reject(new Error(`the engine answered ${response.statusCode}: ${text.slice(0, 500)}`));
          return;
        }
        const { choices, usage } = JSON.parse(text) as {
          choices: { message: { content: string } }[];
          usage: { completion_tokens: number };
        };
        resolve({ text: choices[0]?.message.content ?? "", tokens: usage.completion_tokens });
      });
    });
    sent.on("error", reject);
    sent.end(body);
  });
}
