/**
 * Runs every test: `pnpm test`; without the real engines and what else is slow: `pnpm test:quick`.
 * Arguments name the stages to run (by the beginning of their names); none: all of them.
 * The last line is `N passed, N failed`, over all runners; the exit code is 1 when anything failed.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setupChromium } from "./setup/chromium.ts";
import { setupEnvironment, setupModel } from "./setup/index.ts";
import {
  type EnvironmentName,
  environments,
  pythonOf,
  root,
  sglangEnvironments,
  vllmEnvironments,
} from "./setup/paths.ts";
import { SetupError, say } from "./setup/steps.ts";
import { type Result, runStage, type Stage } from "./test/stage.ts";

const args = process.argv.slice(2);
const quick = args.includes("--quick");
const wanted = args.filter((arg) => !arg.startsWith("--"));
const reports = mkdtempSync(join(tmpdir(), "triattn-test-"));
const bin = (name: string) => join(root, "node_modules", ".bin", name);
const [newest] = vllmEnvironments;
let browserEnvironment: NodeJS.ProcessEnv = {};

function vitest(name: string, project: string, env: NodeJS.ProcessEnv = {}): Stage {
  const file = join(reports, `${name}.json`);
  const reporters = ["--reporter=default", "--reporter=json", `--outputFile.json=${file}`];
  return {
    name,
    command: bin("vitest"),
    args: ["run", "--project", project, ...reporters],
    env,
    report: { kind: "vitest", file },
  };
}

function pytest(name: string, environment: EnvironmentName, options: readonly string[]): Stage {
  const file = join(reports, `${name}.xml`);
  return {
    name,
    command: pythonOf(environment),
    args: [
      "-m",
      "pytest",
      "-q",
      "-c",
      "kernels/pyproject.toml",
      "--rootdir",
      "kernels",
      `--junitxml=${file}`,
      ...options,
    ],
    env: { OMP_NUM_THREADS: process.env.OMP_NUM_THREADS ?? "1" },
    report: { kind: "junit", file },
  };
}

function stages(): Stage[] {
  const ruff = join(pythonOf(newest), "..", "ruff");
  const python = ["kernels", "scripts", "packages", "test", "examples"];
  const lint: Stage[] = [
    { name: "biome", command: bin("biome"), args: ["check", "."] },
    { name: "tsc", command: bin("tsc"), args: ["-b"] },
    { name: "ruff-check", command: ruff, args: ["check", "--config", "kernels/pyproject.toml", ...python] },
    {
      name: "ruff-format",
      command: ruff,
      args: ["format", "--check", "--config", "kernels/pyproject.toml", ...python],
    },
  ];
  const marks = quick ? "not engine and not slow" : "not engine";
  const withoutEngines = ["engine", "sglang_engine"].map((name) => `--ignore=kernels/tests/${name}`);
  const units = [
    vitest("vitest", "unit", { TRIATTN_TEST_PYTHON: pythonOf(newest), TRIATTN_QUICK: quick ? "1" : "0" }),
    pytest("pytest", newest, ["kernels/tests", ...withoutEngines, "-m", marks]),
  ];
  if (quick) return [...lint, ...units];
  const engines = vllmEnvironments.flatMap((name) => [
    // Ten minutes on two cores; a slower machine is no failure.
    { ...pytest(`engine-${name}`, name, ["kernels/tests/engine"]), minutes: 35 },
    vitest(`serve-${name}`, "engine", { TRIATTN_TEST_PYTHON: pythonOf(name) }),
  ]);
  const second = sglangEnvironments.flatMap((name) => [
    pytest(`engine-${name}`, name, ["kernels/tests/sglang_engine"]),
    vitest(`serve-${name}`, "sglang", { TRIATTN_TEST_PYTHON: pythonOf(name) }),
  ]);
  const packaging = vitest("package", "package", { TRIATTN_TEST_PYTHON: pythonOf(newest) });
  const browser = vitest("browser", "browser", browserEnvironment);
  return [...lint, ...units, browser, packaging, ...engines, ...second];
}

function table(results: readonly Result[]): void {
  const width = Math.max(...results.map(({ name }) => name.length));
  for (const { name, passed, failed, skipped, seconds } of results) {
    const mark = failed > 0 ? "✗" : "✓";
    const skips = skipped > 0 ? `, ${skipped} skipped` : "";
    say(
      `${mark} ${name.padEnd(width)}  ${passed} passed, ${failed} failed${skips}  (${seconds.toFixed(0)} s)`,
    );
  }
}

process.chdir(root);
const results: Result[] = [];
try {
  for (const name of quick ? [newest] : environments) await setupEnvironment(name);
  if (!quick) await setupModel();
  if (!quick) browserEnvironment = await setupChromium();
  const chosen = stages().filter(({ name }) => wanted.length === 0 || wanted.some((w) => name.startsWith(w)));
  for (const stage of chosen) {
    say(`\n── ${stage.name}`);
    results.push(await runStage(stage));
  }
  // Where only the end of a long log is kept, why a stage failed is in it.
  for (const { name, end } of results.filter(({ failed, end }) => failed > 0 && end !== "")) {
    say(`\n── ${name} failed; its last lines again:\n${end}`);
  }
  say("");
  if (results.length > 0) table(results);
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  say(`${error.message}\n→ ${error.remedy}`);
  results.push({ name: "set-up", passed: 0, failed: 1, skipped: 0, seconds: 0, end: "" });
} finally {
  rmSync(reports, { recursive: true, force: true });
}
const passed = results.reduce((total, result) => total + result.passed, 0);
const failed = results.reduce((total, result) => total + result.failed, 0);
process.stdout.write(`${passed} passed, ${failed} failed\n`);
process.exitCode = failed > 0 || passed === 0 ? 1 : 0;
