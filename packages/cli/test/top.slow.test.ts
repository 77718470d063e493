import { spawn } from "node:child_process";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { FakeControlServer } from "./fixtures/control-server.ts";
import { python, root, until, withVariable } from "./helpers.ts";

async function server(): Promise<FakeControlServer> {
  const fake = await FakeControlServer.start();
  onTestFinished(() => fake.close());
  return fake;
}

/** The real command in a terminal of its own. */
function inTerminal(url: string, mark = "") {
  const script = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
  const command = [
    process.execPath,
    "--import",
    "tsx",
    join(root, "packages", "cli", "src", "bin.ts"),
    "top",
    url,
  ];
  const child = spawn(python, ["-c", script, ...command], {
    cwd: root,
    env: {
      ...process.env,
      NO_COLOR: "1",
      TRIATTN_TEST_MARK: mark,
      TERM: "xterm",
      COLUMNS: "80",
      LINES: "24",
    },
    stdio: ["pipe", "pipe", "inherit"],
  });
  // It may have gone when a key is pressed.
  child.stdin.on("error", () => {});
  let seen = "";
  child.stdout.on("data", (chunk) => {
    seen += chunk;
  });
  const ended = new Promise<number | null>((done) => child.once("close", done));
  onTestFinished(() => void child.kill("SIGKILL"));
  return {
    child,
    ended,
    type: (keys: string) => child.stdin.write(keys),
    shows: (text: string) => until(() => seen.includes(text), `${text} on the screen: ${seen.slice(-2000)}`),
    seen: () => seen,
  };
}

test("the budget changes when it is confirmed, and the terminal is given back", async () => {
  const fake = await server();
  const terminal = inTerminal(fake.url);
  await terminal.shows("chatcmpl-");
  terminal.type("+");
  await terminal.shows("12 rounds at once, 6,144 tokens go");
  expect(fake.policy.policy.budget).toBe(2048);
  terminal.type("\r");
  await terminal.shows("budget 2176 in force as revision 4: vllm-4711 at step");
  expect(fake.policy.policy.budget).toBe(2176);
  fake.refuse = true;
  terminal.type("-\r");
  await terminal.shows("not changed: policy.budget = 2048: at least 260");
  // A control plane that goes away is waited for.
  for (const stream of fake.streams) stream.destroy();
  await terminal.shows("trying again");
  terminal.type("q");
  expect(await terminal.ended).toBe(0);
  expect(terminal.seen()).toMatch(/\[\?1049h.*\[\?25h.*\[\?1049l/s);
}, 60_000);

test("a signal gives the terminal back, too", async () => {
  const fake = await server();
  const mark = `top-${process.pid}`;
  const terminal = inTerminal(fake.url, mark);
  await terminal.shows("chatcmpl-");
  // Python, which holds the terminal, and in it the command.
  const [, command] = withVariable("TRIATTN_TEST_MARK", mark).sort((a, b) => a - b);
  process.kill(command as number, "SIGTERM");
  expect(await terminal.ended).toBe(143);
  expect(terminal.seen()).toMatch(/\[\?1049l\s*$/);
}, 60_000);
