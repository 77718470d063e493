import { describe, expect, test } from "vitest";
import { EngineDied, EnvironmentError, prepare, type Served, serve, start } from "../src/index.ts";
import { alive, fakeEnvironment, fakeOptions, until } from "./helpers.ts";

/** What the fake engine said, merged. */
function collect() {
  const lines: string[] = [];
  const said = (): Record<string, unknown> =>
    Object.assign({}, ...lines.filter((line) => line.startsWith("{")).map((line) => JSON.parse(line)));
  return { lines, said, onLine: (line: string) => void lines.push(line) };
}

async function gone(served: Served): Promise<void> {
  await served.exited;
  expect(alive(served.engine.pid)).toBe(false);
  expect(served.engine.state).toBe("ended");
}

describe("an engine that behaves", () => {
  test("serves under the control plane, with plugin, policy and flags", async () => {
    const { said, lines, onLine } = collect();
    const served = await serve({
      ...fakeOptions("", {
        budget: 512,
        engineFlags: ["--port", "0", "--some-flag", "{a b}"],
        environment: fakeEnvironment("", { VLLM_PLUGINS: "other", TRIATTN_RUNTIME_KV_BUDGET: "1" }),
      }),
      onLine,
    });
    try {
      expect(served.engine.state).toBe("ready");
      expect((await fetch(`${served.url}/health`)).status).toBe(200);
      expect(served.controlPlane.engines()).toHaveLength(1);
      const { args, plugins, environment, policy, budget } = said();
      const port = new URL(served.url as string).port;
      expect(args).toEqual(["--model", "nobody/nothing", "--port", port, "--some-flag", "{a b}"]);
      expect(plugins).toMatchObject({ triattn: "triattn.engines.vllm.plugin:register" });
      expect(policy).toBe("keydiff");
      expect(budget).toBe(512);
      expect(environment).toMatchObject({
        TRIATTN_SOCKET: served.controlPlane.endpoint,
        VLLM_PLUGINS: "other,triattn",
      });
      expect(environment).not.toHaveProperty("TRIATTN_RUNTIME_KV_BUDGET");
      expect(lines).toContain("on stderr");
    } finally {
      await served.stop();
    }
    await gone(served);
    expect(await served.exited).toMatchObject({ asked: true });
  });

  test("stopping twice is stopping once", async () => {
    const served = await serve(fakeOptions());
    expect(await Promise.all([served.stop(), served.stop()])).toHaveLength(2);
    expect(await served.kill()).toEqual(await served.stop());
  });
});

describe("an engine that does not", () => {
  test("deaf to SIGTERM, it is killed after the grace", async () => {
    const served = await serve(fakeOptions("hang"));
    const began = performance.now();
    expect(await served.stop()).toMatchObject({ code: null, signal: "SIGKILL", asked: true });
    expect(performance.now() - began).toBeGreaterThan(1_400);
    await gone(served);
  });

  test("a second request kills it at once", async () => {
    const served = await serve(fakeOptions("hang", { graceMs: 60_000 }));
    void served.stop();
    const began = performance.now();
    await served.kill();
    expect(performance.now() - began).toBeLessThan(5_000);
    await gone(served);
  });

  test("what it starts goes with it, other sessions too", async () => {
    const { said, onLine } = collect();
    const served = await serve({ ...fakeOptions("orphans"), onLine });
    const children = said().children as number[];
    expect(children.map(alive)).toEqual([true, true]);
    await served.stop();
    expect(children.map(alive)).toEqual([false, false]);
  });

  test("killed by somebody else, it leaves nothing", async () => {
    const { said, onLine } = collect();
    const served = await serve({ ...fakeOptions("orphans killed"), onLine });
    const children = said().children as number[];
    expect(await served.exited).toEqual({ code: null, signal: "SIGKILL", asked: false });
    expect(children.map(alive)).toEqual([false, false]);
  });

  test("its guardian killed, it goes too", async () => {
    const { said, onLine } = collect();
    const served = await serve({ ...fakeOptions("hang orphans"), onLine });
    const [child, elsewhere] = said().children as [number, number];
    process.kill(served.engine.pid, "SIGKILL");
    expect(await served.exited).toEqual({ code: null, signal: "SIGKILL", asked: false });
    await expect(fetch(`${served.url}/health`)).rejects.toThrow();
    await until(() => !alive(child), "its child ends");
    // One that made a session of its own is out of reach without the guardian.
    process.kill(elsewhere, "SIGKILL");
  });

  test("dead while it serves, it says so with the end of its log", async () => {
    const served = await serve(fakeOptions("die"));
    const exit = await served.exited;
    expect(exit).toEqual({ code: 7, signal: null, asked: false });
    expect(served.died(exit).log).toContain("CUDA error");
    await gone(served);
  });

  test("dead before it serves, serve() throws", async () => {
    const error = await serve(fakeOptions("early")).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(EngineDied);
    expect(error).toMatchObject({ code: 7 });
    expect((error as EngineDied).log).toContain("out of memory");
  });

  test("serving without the plugin, it is refused and stopped", async () => {
    const served = await start(await prepare(fakeOptions("deaf")), { pluginMs: 500 });
    await expect(served.ready).rejects.toThrow(EnvironmentError);
    await expect(served.ready).rejects.toThrow(/nothing would be compressed/);
    await gone(served);
  });

  test("stopped while it starts, it goes", async () => {
    const served = await start(await prepare(fakeOptions("deaf")));
    await served.stop();
    await expect(served.ready).rejects.toThrow(EngineDied);
    await gone(served);
  });
});

test("the control plane's socket is gone with the engine", async () => {
  const served = await serve(fakeOptions());
  const path = served.controlPlane.endpoint.slice("ipc://".length);
  await served.stop();
  const { existsSync } = await import("node:fs");
  await until(() => !existsSync(path), "the socket is removed");
});
