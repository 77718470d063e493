import { execFile } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "vitest";

const root = join(import.meta.dirname, "..");

async function run(example: string, ...args: string[]): Promise<string> {
  const command = ["--import", "tsx", join("examples", example), ...args];
  return (await promisify(execFile)(process.execPath, command, { cwd: root, timeout: 60_000 })).stdout;
}

test("policies: builders, rules, what is in force", async () => {
  expect((await run("policies.ts")).trim().split("\n")).toEqual([
    "revision 2: budget 512",
    "revision 3: budget 1024",
    "rules: vip, batch, small",
    "policy.budget = 10: at least pin.sinks + pin.window = 68, or 0 to never compress",
  ]);
}, 60_000);

test.each([
  ["vllm", "vllm_xargs"],
  ["sglang", "custom_params"],
])(
  "openai-client: what it sends to %s",
  async (engine, field) => {
    const bodies: Record<string, unknown>[] = [];
    const server = createServer(async (request, response) => {
      bodies.push(JSON.parse(Buffer.concat(await request.toArray()).toString()));
      const message = { role: "assistant", content: `from ${request.url}` };
      response.setHeader("content-type", "application/json");
      response.end(JSON.stringify({ id: "1", object: "chat.completion", choices: [{ index: 0, message }] }));
    }).listen(0, "127.0.0.1");
    try {
      await once(server, "listening");
      const { port } = server.address() as { port: number };
      expect(await run("openai-client.ts", `http://127.0.0.1:${port}`, "m", engine)).toBe(
        "from /v1/chat/completions\n",
      );
      expect(bodies).toEqual([
        expect.objectContaining({ model: "m", [field]: { triattn_budget: 512, triattn_tags: "batch,low" } }),
      ]);
    } finally {
      server.close();
    }
  },
  60_000,
);

test("each example is run by a test", () => {
  const tests = ["examples.test.ts", "examples.engine.test.ts"].map((name) =>
    readFileSync(join(import.meta.dirname, name), "utf8"),
  );
  for (const name of readdirSync(join(root, "examples")).filter((file) => file.endsWith(".ts"))) {
    expect(
      tests.some((text) => text.includes(`"${name}"`)),
      name,
    ).toBe(true);
  }
});
