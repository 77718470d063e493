import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ConfigError, parseRules, preset } from "@triattn/control";
import { expect, test } from "vitest";
import { version, writeDistInfo } from "../src/package.ts";
import { backendOf } from "../src/serve/backends.ts";
import { engineVariables, keptQueries, withVariables } from "../src/serve/environment.ts";
import { readEngineFlags, urlOf } from "../src/serve/flags.ts";
import { quote, toJson } from "../src/serve/output.ts";
import { checkObserved, resolvePolicy } from "../src/serve/policy.ts";
import { root, TemporaryDirectory } from "./helpers.ts";

const model = "nobody/nothing";

test("engine flags: what triattn reads of them", () => {
  const port = (...flags: string[]) => readEngineFlags(flags).port;
  expect(port()).toBe(8000);
  expect(port("--port", "81")).toBe(81);
  expect(port("--port=82", "--port", "83")).toBe(83);
  expect(() => port("--port", "99999")).toThrow(ConfigError);
  expect(readEngineFlags(["--block_size", "32"]).blockSize).toBe(32);
  expect(readEngineFlags(["--shutdown-timeout", "60"]).shutdownSeconds).toBe(60);
  expect(urlOf(readEngineFlags(["--host", "0.0.0.0"]))).toBe("http://127.0.0.1:8000");
  expect(urlOf(readEngineFlags(["--host", "::1", "--ssl-keyfile", "k"]))).toBe("https://[::1]:8000");
  expect(urlOf(readEngineFlags(["--uds", "/s"]))).toBeUndefined();
});

test("engine flags: those of --config FILE come after those given", () => {
  using directory = new TemporaryDirectory();
  const file = directory.write("c.yaml", "# mine\nport: 9001 # here\nblock_size: 64\nhost: '10.0.0.1'\n");
  expect(readEngineFlags(["--config", file])).toMatchObject({ port: 9001, blockSize: 64, host: "10.0.0.1" });
  expect(readEngineFlags(["--config", file, "--port", "1"]).port).toBe(1);
  expect(readEngineFlags(["--config", "/nowhere"]).port).toBe(8000);
});

test("SGLang's own flags and defaults", () => {
  const sglang = backendOf("sglang");
  expect(readEngineFlags([], sglang)).toMatchObject({ host: "127.0.0.1", bind: "127.0.0.1", port: 30_000 });
  expect(readEngineFlags(["--page-size", "16", "--host=0.0.0.0"], sglang)).toMatchObject({
    blockSize: 16,
    host: "127.0.0.1",
    bind: "0.0.0.0",
  });
  for (const flag of ["--model", "--model-path"]) {
    expect(() => readEngineFlags([flag, "m"], sglang)).toThrow(`${flag} = m: name the model before the --`);
  }
  const policy = preset("random");
  const changes = engineVariables(
    { plugin: "/p", policy, statistics: null },
    { SGLANG_PLUGINS: "a" },
    sglang,
  );
  expect(changes).toMatchObject({ SGLANG_PLUGINS: "a,triattn" });
});

test("the policy: what was asked for, TRIATTN_POLICY, the reference's variables, the default", () => {
  using directory = new TemporaryDirectory();
  const document = JSON.stringify({ name: "mine", terms: [{ kind: "recency" }], budget: 700 });
  const file = directory.write("p.json", document);
  const resolve = (policy: string | undefined, environment: NodeJS.ProcessEnv = {}) => {
    const { policy: found, source } = resolvePolicy(
      { model, policy },
      { XDG_DATA_HOME: directory.path, ...environment },
    );
    return [found.name, found.budget, source];
  };
  const reference = { TRIATTN_RUNTIME_KV_BUDGET: "999", TRIATTN_RUNTIME_DISABLE_TRIG: "false" };
  expect(resolve("keydiff", { TRIATTN_POLICY: "random" })).toEqual(["keydiff", 2048, "keydiff"]);
  expect(resolve(file)).toEqual(["mine", 700, file]);
  expect(resolve(undefined, { TRIATTN_POLICY: "random", ...reference })).toEqual([
    "random",
    2048,
    "TRIATTN_POLICY",
  ]);
  expect(resolve(undefined, { TRIATTN_POLICY: document })).toEqual(["mine", 700, "TRIATTN_POLICY"]);
  expect(resolve(undefined, { ENABLE_TRIATTENTION: "0" })).toEqual(["auto", 0, "ENABLE_TRIATTENTION"]);
  // The reference's policy scores with statistics, and this model has none; the default says what it does without.
  expect(() => resolve(undefined, reference)).toThrow(/stats = none for nobody\/nothing/);
  expect(resolve(undefined)).toEqual(["auto", 2048, "the default"]);
  const environment = { XDG_DATA_HOME: directory.path };
  expect(resolvePolicy({ model }, environment).warnings).toEqual([
    "no statistics of nobody/nothing: policy auto goes without trig and norm; `triattn calibrate nobody/nothing` makes them",
  ]);
  expect(resolvePolicy({ model: "Qwen/Qwen3-8B" }, environment).warnings).toEqual([]);
  expect(resolvePolicy({ model, policy: "keydiff" }, environment).warnings).toEqual([]);
});

test("the reference's variables: statistics and warnings come along", () => {
  const environment = {
    TRIATTN_RUNTIME_KV_BUDGET: "0",
    TRIATTN_RUNTIME_SPARSE_STATS_PATH: join(root, "stats", "qwen3-8b.safetensors"),
    TRIATTN_RUNTIME_NONSENSE: "1",
  };
  const { policy, source, statistics, warnings } = resolvePolicy({ model }, environment);
  expect([policy.budget, source]).toEqual([0, "TRIATTN_RUNTIME_*"]);
  expect(statistics).toBe(environment.TRIATTN_RUNTIME_SPARSE_STATS_PATH);
  expect(warnings).toContain("TRIATTN_RUNTIME_NONSENSE is not known and has no effect");
});

test("budget and interval replace the policy's", () => {
  const { policy } = resolvePolicy({ model, policy: "keydiff", budget: 500, interval: 7 }, {});
  expect(policy).toEqual({ ...preset("keydiff"), budget: 500, interval: 7 });
  expect(() => resolvePolicy({ model, policy: "keydiff", budget: 100 }, {})).toThrow(ConfigError);
});

test("statistics of another model are refused with both fingerprints", () => {
  using directory = new TemporaryDirectory();
  const config = readFileSync(join(root, "stats", "configs", "qwen3-8b.json"), "utf8");
  const served = { ...JSON.parse(config), vocab_size: 17 };
  mkdirSync(join(directory.path, "m"));
  directory.write("m/config.json", JSON.stringify(served));
  const statistics = join(root, "stats", "smollm2-135m-instruct.safetensors");
  const resolve = () =>
    resolvePolicy({ model: join(directory.path, "m"), policy: "triattention", statistics }, {});
  expect(resolve).toThrow(/[0-9a-f]{32}.*[0-9a-f]{32}/);
});

test("statistics without covariances are refused where a policy needs them", () => {
  const resolve = (policy: Parameters<typeof resolvePolicy>[0]["policy"]) =>
    resolvePolicy({ model: "Qwen/Qwen3-8B", policy }, {});
  expect(() => resolve("expected-attention")).toThrow(
    /no covariances.*expected-attention.*triattn calibrate/,
  );
  expect(() => resolve({ ...preset("expected-attention"), budget: 0 })).not.toThrow();
  const terms = [{ kind: "expected" as const }, { kind: "keydiff" as const }];
  expect(() => resolve({ name: "able", terms, statistics: "optional" })).not.toThrow();
});

test("the engine's environment", () => {
  const policy = preset("keydiff");
  const inherited = {
    PATH: "/bin",
    PYTHONPATH: "/mine",
    VLLM_PLUGINS: "a,b",
    ENABLE_TRIATTENTION: "1",
    TRIATTN_RUNTIME_KV_BUDGET: "1",
    TRIATTN_STATS: "/old",
  };
  const changes = engineVariables({ plugin: "/plugin", policy, statistics: null }, inherited);
  expect(withVariables(inherited, changes)).toEqual({
    PATH: "/bin",
    PYTHONPATH: "/plugin:/mine",
    PYTHONUNBUFFERED: "1",
    TRIATTN_POLICY: JSON.stringify(policy),
    VLLM_PLUGINS: "a,b,triattn",
  });
  const allowed = engineVariables({ plugin: "/p", policy, statistics: "/s" }, { VLLM_PLUGINS: "triattn" });
  expect(allowed).toMatchObject({ PYTHONPATH: "/p", TRIATTN_STATS: "/s" });
  expect(allowed).not.toHaveProperty("VLLM_PLUGINS");
});

test("queries that rules' policies observe are set aside while the engine starts", () => {
  const rules = parseRules([{ name: "r", match: { tags: ["a"] }, policy: "rkv" }], preset("snapkv"));
  const variable = (asked?: string) =>
    engineVariables(
      { plugin: "/p", policy: preset("keydiff"), rules, statistics: null },
      asked === undefined ? {} : { TRIATTN_OBSERVED_QUERIES: asked },
    ).TRIATTN_OBSERVED_QUERIES;
  expect(variable()).toBe("8");
  expect(variable("4")).toBe("8");
  expect(variable("32")).toBeUndefined();
  const kept = keptQueries([preset("keydiff"), preset("h2o"), preset("snapkv")], {
    TRIATTN_OBSERVED_QUERIES: "64",
  });
  expect(kept).toEqual({ TRIATTN_OBSERVED_QUERIES: "128" });
  const without = engineVariables({ plugin: "/p", policy: preset("snapkv"), statistics: null }, {});
  expect(without).not.toHaveProperty("TRIATTN_OBSERVED_QUERIES");
});

test("a policy that observes attention is refused where the engine's hooks keep no queries", () => {
  const rules = parseRules([{ name: "r", match: { tags: ["a"] }, policy: "rkv" }], preset("keydiff"));
  const check = (backend: "vllm" | "sglang") =>
    checkObserved({ policy: preset("keydiff"), rules }, backendOf(backend));
  expect(() => check("vllm")).not.toThrow();
  expect(() => check("sglang")).toThrow(
    "policy = rkv: its term observed needs recent queries, which triattn keeps in vLLM but not in SGLang",
  );
  expect(() => checkObserved({ policy: preset("h2o"), rules: [] }, backendOf("sglang"))).toThrow(
    "policy = h2o: its term accumulated needs recent queries",
  );
  expect(() => checkObserved({ policy: preset("keydiff"), rules: [] }, backendOf("sglang"))).not.toThrow();
});

test("the entry point is written once, and an older version's taken away", () => {
  using directory = new TemporaryDirectory();
  mkdirSync(join(directory.path, "triattn-0.0.0.dist-info"));
  writeDistInfo(directory.path);
  const written = join(directory.path, `triattn-${version}.dist-info`, "entry_points.txt");
  writeFileSync(written, "[vllm.general_plugins]\n");
  writeDistInfo(directory.path);
  writeDistInfo(directory.path);
  expect(readdirSync(directory.path)).toEqual([`triattn-${version}.dist-info`]);
  const text = readFileSync(written, "utf8");
  const project = readFileSync(join(root, "kernels", "pyproject.toml"), "utf8");
  const sections = [...project.matchAll(/^\[project\.entry-points\."(.*)"\]\ntriattn = "(.*)"$/gm)];
  expect(sections.map(([, group]) => group)).toEqual(["vllm.general_plugins", "sglang.srt.plugins"]);
  expect(text).toBe(sections.map(([, group, target]) => `[${group}]\ntriattn = ${target}\n`).join("\n"));
  expect(project).toContain(`\nversion = "${version}"\n`);
});

test("arguments are quoted for a shell, integers of 64 bits are JSON", () => {
  expect(["plain-1=a/b", "two words", `{"a": 'b'}`].map(quote)).toEqual([
    "plain-1=a/b",
    "'two words'",
    `'{"a": '\\''b'\\''}'`,
  ]);
  expect(toJson({ step: 5n })).toBe('{"step":5}');
});
