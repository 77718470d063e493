import { join } from "node:path";
import { expect, test, vi } from "vitest";
import { exitCodeOf, onDisk } from "../src/errors.ts";
import { prepare } from "../src/index.ts";
import { run } from "../src/program.ts";
import { fakeEngine, fakeOptions, python, root, TemporaryDirectory } from "./helpers.ts";

const serving = (...more: string[]) => [
  "serve",
  "nobody/nothing",
  "--policy",
  "keydiff",
  "--python",
  python,
  ...more,
];

test("one clear line for each mistake", async () => {
  using directory = new TemporaryDirectory();
  const damaged = directory.write("damaged.safetensors", "not statistics");
  const broken = directory.write("policy.json", `{"name": "mine", "terms": [{"kind": "magic"}]}`);
  const cases: [string[], number, RegExp][] = [
    [["serve"], 2, /missing required argument 'model'/],
    [["serve", "m", "--budgt", "1"], 2, /unknown option '--budgt'/],
    [["serve", "m", "--budget", "many"], 2, /--budget = many: a whole number/],
    [serving("--interval", "0"), 2, /--interval = 0: a whole number of at least 1/],
    [serving("--budget", "100"), 2, /policy\.budget = 100: at least pin\.sinks \+ pin\.window = 132/],
    [serving("--budget", "140"), 2, /budget = 140: at least 260 .* one block of 128/],
    [serving("--budget", "180", "--", "--block-size", "64"), 2, /budget = 180: at least 196 .* block of 64/],
    [serving("--pressure", "9:1"), 2, /--pressure = 9:1: MIN:MAX, in tokens/],
    [serving("--pressure", "64:1024"), 2, /pressure\.min = 64: at least 260/],
    [serving("--policy", "magic"), 2, /policy = magic: one of .*triattention/],
    [serving("--policy", "./nowhere.json"), 2, /policy = \.\/nowhere\.json: cannot be read \(ENOENT\)/],
    [serving("--policy", broken), 2, /policy\.terms\.0/],
    [serving("--policy", "triattention"), 2, /stats = none for nobody\/nothing: .*triattn calibrate/],
    [serving("--stats", damaged), 2, /damaged\.safetensors/],
    [serving("--stats", "nowhere"), 2, /stats = nowhere: is neither a file nor known by name/],
    [serving("--backend", "other"), 2, /Allowed choices are vllm, sglang/],
    [serving("--backend", "sglang"), 3, /no SGLang: install it/],
    [serving("--", "--port", "x"), 2, /--port = x: a whole number from 0 to 65535/],
    [serving("--", "--model", "other"), 2, /--model = other: name the model before the --/],
    [
      ["serve", "m", "--policy", "keydiff", "--python", "/nowhere/python"],
      3,
      /python = \/nowhere\/python: not found/,
    ],
  ];
  vi.stubEnv("PYTHONPATH", fakeEngine);
  const stdout = vi.spyOn(process.stdout, "write").mockReturnValue(true);
  const stderr = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  try {
    for (const [args, code, message] of cases) {
      stderr.mockClear();
      expect([await run(args), args]).toEqual([code, args]);
      expect(stderr.mock.calls.join("")).toMatch(message);
    }
    expect(stdout).not.toHaveBeenCalled();
  } finally {
    vi.restoreAllMocks();
    vi.unstubAllEnvs();
    process.exitCode = 0;
  }
}, 60_000);

test("a temporary directory that cannot be used is named before anything starts", async () => {
  vi.stubEnv("TMPDIR", join(root, "package.json"));
  await expect(prepare(fakeOptions())).rejects.toThrow(/disk = .*package\.json: it is not a directory/);
  vi.unstubAllEnvs();
});

test("a full disk is an error of the machine", async () => {
  const full = Object.assign(new Error("write"), { code: "ENOSPC", syscall: "write" });
  const error = await onDisk("/full", () => Promise.reject(full)).catch((e: unknown) => e);
  expect(String(error)).toBe("EnvironmentError: disk = /full: the disk is full: free some space");
  expect(exitCodeOf(error)).toBe(3);
});
