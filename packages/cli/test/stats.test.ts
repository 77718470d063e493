import { existsSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { run } from "../src/program.ts";
import { root, TemporaryDirectory } from "./helpers.ts";

const reference = join(root, "packages", "control", "test", "stats", "fixtures", "tiny_reference.pt");
const config = {
  model_type: "llama",
  hidden_size: 32,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 100,
  rope_theta: 10000,
};

let home: TemporaryDirectory;
let out = "";
let error = "";

beforeEach(() => {
  home = new TemporaryDirectory();
  vi.stubEnv("XDG_DATA_HOME", home.path);
  vi.spyOn(process.stdout, "write").mockImplementation((text) => {
    out += text;
    return true;
  });
  vi.spyOn(process.stderr, "write").mockImplementation((text) => {
    error += text;
    return true;
  });
});

afterEach(() => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
  home[Symbol.dispose]();
  process.exitCode = undefined;
});

/** Exit code and output of `triattn stats …`. */
async function stats(...args: string[]): Promise<{ code: number; out: string; error: string }> {
  out = error = "";
  const code = await run(["stats", ...args]);
  return { code, out, error };
}

function model(change: object = {}): string {
  const directory = join(home.path, `model-${Object.keys(change).join("-")}`);
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, "config.json"), JSON.stringify({ ...config, ...change }));
  return directory;
}

test("list, for people and for programs", async () => {
  const text = await stats("list");
  expect(text.code).toBe(0);
  expect(text.out).toMatch(/^NAME +MODEL +TOKENS +FINGERPRINT +ORIGIN\n/);
  expect(text.out).toMatch(/^qwen3-8b +Qwen\/Qwen3-8B +- +[0-9a-f]{32} +shipped$/m);
  const json = JSON.parse((await stats("list", "--json")).out);
  expect(json.statistics.map((entry: { name: string }) => entry.name)).toContain("smollm2-135m-instruct");
});

test("show, by name and by the model's name", async () => {
  const text = await stats("show", "gpt-oss-120b");
  expect(text.out).toMatch(/^geometry +36 layers, 64\/8 heads of 64$/m);
  expect(text.out).toMatch(/^rotary +yarn, theta 150000/m);
  expect(text.out).toMatch(/^probe +none/m);
  const probed = await stats("show", "tiny-reasoner");
  expect(probed.out).toMatch(/^probe +64 hidden units$/m);
  const json = JSON.parse((await stats("show", "openai/gpt-oss-120b", "--json")).out);
  expect(json.model.fingerprint).toBe("7a84eaf67bb1441da43e2d651e60ce2e");
  expect(json.concentration.mean).toBeCloseTo(0.753, 2);
  expect(json.concentration.perLayer).toHaveLength(36);
});

test("import puts a file into the user's library, where it is found by name", async () => {
  const imported = await stats("import", reference, "--model", model(), "--license", "Apache-2.0", "--json");
  expect(imported.code).toBe(0);
  const written = JSON.parse(imported.out);
  expect(written).toMatchObject({ path: join(home.path, "triattn", "stats", "reference.safetensors") });
  expect(written.model).toMatchObject({ name: "tiny/reference", layers: 2 });
  expect((await stats("list")).out).toMatch(/^reference +tiny\/reference +.* user$/m);
  const verified = await stats("verify", "tiny/reference", "--model", model(), "--json");
  expect(JSON.parse(verified.out)).toMatchObject({ ok: true, comparedWithModel: true });
});

test("verify refuses another model with both fingerprints, and a damaged file, by exit code 2", async () => {
  const file = join(home.path, "a.safetensors");
  expect(
    (await stats("import", reference, "--model", join(model(), "config.json"), "--out", file)).code,
  ).toBe(0);
  expect(await stats("verify", file)).toMatchObject({ code: 0 });
  const other = await stats("verify", file, "--model", model({ vocab_size: 99 }));
  expect(other.code).toBe(2);
  expect(new Set(other.error.match(/\b[0-9a-f]{32}\b/g)).size).toBe(2);
  expect((await stats("verify", file, "--model", "org/elsewhere")).out).toContain("was not compared");
  truncateSync(file, 900);
  const damaged = await stats("verify", file);
  expect(damaged.code).toBe(2);
  expect(damaged.error).toContain("truncated");
  expect(damaged.out).toBe("");
});

test.each([
  [["show", "unknown"], "known are: smollm2-135m-instruct"],
  [["import", "missing.pt", "--model", "."], "config.json cannot be read (ENOENT)"],
  [["import", reference], "--model"],
  [["verify", "qwen3-8b", "--model", "./missing"], "does not exist"],
])("%j is refused by exit code 2", async (args, words) => {
  const { code, error: said } = await stats(...args);
  expect(code).toBe(2);
  expect(said).toContain(words);
});

test("an import that is refused writes nothing", async () => {
  const file = join(home.path, "a.safetensors");
  writeFileSync(file, "what was there");
  const { code } = await stats(
    "import",
    reference,
    "--model",
    model({ num_hidden_layers: 4 }),
    "--out",
    file,
  );
  expect(code).toBe(2);
  expect(readFileSync(file, "utf8")).toBe("what was there");
  const pickle = home.write("evil.pt", "\x80\x02cos\nsystem\nX\x04\x00\x00\x00echo\x85R.");
  const missing = join(home.path, "b.safetensors");
  expect((await stats("import", pickle, "--model", model(), "--out", missing)).code).toBe(2);
  expect(existsSync(missing)).toBe(false);
});
