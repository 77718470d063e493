/**
 * The pressure controller against fixed budgets on a real engine (vLLM on the CPU): a load of few long requests and
 * bursts of many, the same for each arm; tokens evicted, preemptions, and time.
 *
 *     npx -y pnpm@12 bench:pressure [--fixed 160,192] [--only controller|fixed] [--cycles N] [--json]
 */
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { type ControlPlane, policy, type Served, serve } from "triattn";
import { environments, pythonOf, root } from "./setup/paths.ts";

const { values } = parseArgs({
  options: {
    fixed: { type: "string", default: "128,160,192,256" },
    cycles: { type: "string", default: "1" },
    only: { type: "string", default: "controller,fixed" },
    json: { type: "boolean", default: false },
  },
});
const fixed = values.fixed.split(",").map(Number);
const cycles = Number(values.cycles);
const [newest] = environments;
const model = join(root, ".tools", "models", "SmolLM2-135M-Instruct");
const bounds = { min: 128, max: 768 };
const quiet = { requests: 2, tokens: 700 };
const burst = { requests: 12, tokens: 300 };
/** 96 blocks of 32 tokens, of 23,040 bytes each: a burst fits at the smallest budget, and not at its whole length. */
const CACHE_BYTES = 96 * 32 * 23_040;

const base = policy("pressure")
  .term("recency")
  .interval(32)
  .pin({ prompt: false, sinks: 4, window: 32 })
  .set({ selection: "union", normalize: "none" });

interface Arm {
  arm: string;
  evicted: number;
  preemptions: number;
  rounds: number;
  seconds: number;
  /** Smallest and largest budget that was in force. */
  budgets: readonly [number, number];
}

async function generate(url: string, tokens: number, seed: number): Promise<void> {
  const body = {
    model,
    prompt: `Story number ${seed}. Once upon a time`,
    max_tokens: tokens,
    ignore_eos: true,
    seed,
  };
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const { usage } = (await response.json()) as { usage: { completion_tokens: number } };
  if (usage.completion_tokens !== tokens) throw new Error(`${usage.completion_tokens} tokens, not ${tokens}`);
}

async function load(url: string): Promise<void> {
  for (let cycle = 0; cycle < cycles; cycle++) {
    for (const { requests, tokens } of [quiet, burst]) {
      await Promise.all(Array.from({ length: requests }, (_, i) => generate(url, tokens, cycle * 100 + i)));
    }
  }
}

/** Tokens evicted, preemptions and rounds so far, once the engine has reported all. */
async function settled(plane: ControlPlane): Promise<Pick<Arm, "evicted" | "preemptions" | "rounds">> {
  for (let before = ""; ; ) {
    await sleep(2000);
    // An engine that has not done anything has not reported anything.
    const [found] = Object.values(plane.counters().engines);
    const { tokensEvicted = 0n, preemptions = 0n, rounds = 0n } = found ?? {};
    const now = { evicted: Number(tokensEvicted), preemptions: Number(preemptions), rounds: Number(rounds) };
    if (JSON.stringify(now) === before && (found?.running ?? 0) === 0) return now;
    before = JSON.stringify(now);
  }
}

async function measure(arm: string, served: Served): Promise<Arm> {
  const { controlPlane: plane, url = "" } = served;
  const before = await settled(plane);
  const seen = [plane.policy?.policy.budget ?? 0];
  const changes = plane.events("policy");
  void (async () => {
    for await (const change of changes) if (change.type === "policy") seen.push(change.policy.budget);
  })();
  const began = performance.now();
  await load(url);
  const seconds = (performance.now() - began) / 1000;
  const after = await settled(plane);
  await changes.return?.();
  return {
    arm,
    evicted: after.evicted - before.evicted,
    preemptions: after.preemptions - before.preemptions,
    rounds: after.rounds - before.rounds,
    seconds: Math.round(seconds),
    budgets: [Math.min(...seen), Math.max(...seen)],
  };
}

async function engine(pressure?: typeof bounds): Promise<Served> {
  const flags = [
    "--port",
    "0",
    "--enforce-eager",
    "--dtype",
    "bfloat16",
    "--block-size",
    "32",
    "--max-model-len",
    "1024",
  ];
  const served = await serve({
    model,
    python: pythonOf(newest),
    policy: base.budget(bounds.max).build(),
    pressure,
    engineFlags: [...flags, "--no-enable-prefix-caching", "--kv-cache-memory-bytes", String(CACHE_BYTES)],
  });
  process.stderr.write(`cache: ${served.controlPlane.engines()[0]?.hello.cache.blocks} blocks\n`);
  return served;
}

const arms: Arm[] = [];
const say = (arm: Arm) => {
  arms.push(arm);
  process.stderr.write(`${JSON.stringify(arm)}\n`);
};
if (values.only.includes("controller")) {
  const served = await engine(bounds);
  try {
    say(await measure(`controller ${bounds.min}–${bounds.max}`, served));
  } finally {
    await served.stop();
  }
}
if (values.only.includes("fixed")) {
  const served = await engine();
  try {
    for (const budget of fixed) {
      await served.controlPlane.setPolicy(base.budget(budget).build());
      say(await measure(`fixed ${budget}`, served));
    }
  } finally {
    await served.stop();
  }
}
const controller = arms.find(({ arm }) => arm.startsWith("controller"));
const fair = arms.filter((arm) => arm !== controller && arm.preemptions <= (controller?.preemptions ?? 0));
const best = fair.toSorted((a, b) => a.evicted - b.evicted)[0];
const verdict =
  controller === undefined || best === undefined
    ? "nothing to compare"
    : `${((1 - controller.evicted / best.evicted) * 100).toFixed(1)} % fewer tokens evicted than by ${best.arm}, the best that preempts no more`;
if (values.json) process.stdout.write(`${JSON.stringify({ arms, verdict })}\n`);
else {
  const rows = arms.map(
    (a) =>
      `| ${a.arm} | ${a.evicted} | ${a.preemptions} | ${a.rounds} | ${a.seconds} s | ${a.budgets.join("–")} |`,
  );
  process.stdout.write(
    `${["| arm | tokens evicted | preemptions | rounds | time | budgets |", "|---|---|---|---|---|---|", ...rows].join("\n")}\n${verdict}\n`,
  );
}
process.exit(0);
