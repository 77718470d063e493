import { chmodSync, mkdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { backendOf } from "../src/serve/backends.ts";
import { findEngine } from "../src/serve/python.ts";
import { fakeEngine, fakeEnvironment, python, TemporaryDirectory } from "./helpers.ts";

/** A script that stands for a Python: it answers the probe with `answer`. */
function fakePython(directory: TemporaryDirectory, name: string, answer: object): string {
  const path = directory.write(name, `#!/bin/sh\necho 'some noise'\necho '${JSON.stringify(answer)}'\n`);
  chmodSync(path, 0o755);
  return path;
}

const engine = { version: "1.2.3", distribution: "vllm", servers: [true, true] };
const answer = { python: [3, 12, 1], executable: "/e/python", engine, missing: [] as string[] };

test("the interpreter named, by path or by its environment's directory", async () => {
  const found = await findEngine(python, fakeEnvironment());
  expect(found).toMatchObject({
    python,
    version: "9.9.9",
    command: ["-m", "vllm.entrypoints.openai.api_server"],
  });
  using directory = new TemporaryDirectory();
  mkdirSync(join(directory.path, "bin"));
  fakePython(directory, "bin/python", answer);
  expect(await findEngine(directory.path)).toMatchObject({
    python: join(directory.path, "bin", "python"),
    pythonVersion: "3.12.1",
    version: "1.2.3",
  });
});

test("the active environment comes first, then the vllm command's, then the path's", async () => {
  using directory = new TemporaryDirectory();
  const at = (name: string) => join(directory.path, name);
  for (const name of ["venv/bin", "tool", "path"]) mkdirSync(at(name), { recursive: true });
  fakePython(directory, "venv/bin/python", { ...answer, executable: at("venv/bin/python") });
  fakePython(directory, "tool/python", { ...answer, executable: at("tool/python") });
  fakePython(directory, "path/python3", { ...answer, executable: at("path/python3") });
  chmodSync(directory.write("tool/vllm", `#!${at("tool/python")}\nprint()\n`), 0o755);
  symlinkSync(at("tool/vllm"), at("path/vllm"));
  const PATH = `${at("path")}:/usr/bin:/bin`;
  const where = async (environment: NodeJS.ProcessEnv) => (await findEngine(undefined, environment)).python;
  expect(await where({ PATH, VIRTUAL_ENV: at("venv") })).toBe(at("venv/bin/python"));
  expect(await where({ PATH })).toBe(at("tool/python"));
  chmodSync(at("tool/python"), 0o644);
  expect(await where({ PATH })).toBe(at("path/python3"));
});

test("each thing that may be missing is named, with what to do about it", async () => {
  using directory = new TemporaryDirectory();
  const cases: [object, RegExp][] = [
    [
      { ...answer, python: [3, 8, 18] },
      /Python 3\.8: triattn needs Python 3\.11 or newer; name another by --python/,
    ],
    [{ ...answer, engine: null }, /no vLLM: install it: \S+ -m pip install vllm/],
    [{ ...answer, missing: ["zmq", "msgspec"] }, /no zmq, msgspec: .* -m pip install pyzmq msgspec/],
    [{ ...answer, engine: { ...engine, servers: [false, false] } }, /without an OpenAI server/],
    [{ nonsense: true }, /is not a Python that can be asked/],
  ];
  for (const [said, message] of cases) {
    await expect(findEngine(fakePython(directory, "python", said))).rejects.toThrow(message);
  }
  const silent = directory.write("silent", "#!/bin/sh\necho 'Segmentation fault' >&2; exit 3\n");
  chmodSync(silent, 0o755);
  await expect(findEngine(silent)).rejects.toThrow(/does not run \(Segmentation fault\)/);
});

test("an engine without api_server is started by its command line", async () => {
  using directory = new TemporaryDirectory();
  const path = fakePython(directory, "python", { ...answer, engine: { ...engine, servers: [false, true] } });
  expect((await findEngine(path)).command).toEqual(["-m", "vllm.entrypoints.cli.main", "serve"]);
});

test("of several unfit Pythons, the one that has the engine is the one spoken of", async () => {
  using directory = new TemporaryDirectory();
  fakePython(directory, "python3", { ...answer, engine: null });
  fakePython(directory, "python", { ...answer, missing: ["msgspec"] });
  const environment = { PATH: `${directory.path}:/bin` };
  await expect(findEngine(undefined, environment)).rejects.toThrow(/python = python: no msgspec/);
});

test("the probe imports nothing of the engine", async () => {
  using directory = new TemporaryDirectory();
  mkdirSync(join(directory.path, "vllm"));
  directory.write("vllm/__init__.py", "raise RuntimeError('imported')");
  directory.write("vllm/_version.py", "__version__ = version = '0.0.1'");
  const environment = { ...fakeEnvironment(), PYTHONPATH: directory.path };
  await expect(findEngine(python, environment)).rejects.toThrow(/vLLM 0\.0\.1 without an OpenAI server/);
  expect(fakeEngine).not.toBe(directory.path);
});

test("the same for SGLang", async () => {
  using directory = new TemporaryDirectory();
  const sglang = backendOf("sglang");
  const said = { ...answer, engine: { version: "0.5.17", distribution: "sglang", servers: [true] } };
  const path = fakePython(directory, "python", said);
  expect(await findEngine(path, {}, sglang)).toMatchObject({
    version: "0.5.17",
    command: ["-m", "sglang.launch_server"],
  });
  const without = fakePython(directory, "python", { ...answer, engine: null });
  await expect(findEngine(without, {}, sglang)).rejects.toThrow(
    /no SGLang: install it: \S+ -m pip install sglang/,
  );
  await expect(findEngine(undefined, { PATH: directory.path }, sglang)).rejects.toThrow(/none with SGLang/);
});
