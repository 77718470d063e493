/**
 * From `setPolicy` in Node to a policy in force on every rank, in scheduler steps, on a loaded engine (vLLM on the
 * CPU): the time until the acknowledgement, divided by the time of a step.
 *
 *     npx -y pnpm@12 bench:policy [--requests 16] [--changes 25] [--json]
 */
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { type ControlPlane, policy, serve } from "triattn";
import { environments, pythonOf, root } from "./setup/paths.ts";

const { values } = parseArgs({
  options: {
    requests: { type: "string", default: "16" },
    changes: { type: "string", default: "25" },
    json: { type: "boolean", default: false },
  },
});
const requests = Number(values.requests);
const changes = Number(values.changes);
const [newest] = environments;
const model = join(root, ".tools", "models", "SmolLM2-135M-Instruct");
const WARM_UP = 3;

const base = policy("live").term("recency").interval(32).pin({ prompt: false, sinks: 4, window: 32 });

const quantile = (sorted: readonly number[], q: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN;

/** Step and running requests of the next report, and when it came. */
async function nextReport(plane: ControlPlane): Promise<{ step: number; running: number; at: number }> {
  for await (const event of plane.events("counters")) {
    if (event.type !== "counters") continue;
    const { counters } = event;
    return { step: Number(counters.step), running: counters.running, at: performance.now() };
  }
  throw new Error("the control plane was closed");
}

const served = await serve({
  model,
  policy: base.budget(192).build(),
  python: pythonOf(newest),
  engineFlags: [
    ...["--port", "0", "--enforce-eager", "--max-model-len", "4096", "--block-size", "32"],
    ...["--max-num-seqs", String(requests), "--kv-cache-memory-bytes", String(256 << 20)],
  ],
});
try {
  const stop = new AbortController();
  const load = Array.from({ length: requests }, (_, seed) =>
    fetch(`${served.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ model, prompt: `Story ${seed}.`, max_tokens: 4000, ignore_eos: true, seed }),
      signal: stop.signal,
    }).catch(() => {}),
  );
  let first = await nextReport(served.controlPlane);
  while (first.running < requests) first = await nextReport(served.controlPlane);
  const milliseconds: number[] = [];
  for (let change = 0; change < WARM_UP + changes; change += 1) {
    // Not in step with the steps.
    await sleep(150 + 37 * (change % 7));
    const started = performance.now();
    await served.controlPlane.setPolicy(base.budget(change % 2 === 0 ? 160 : 192).build());
    if (change >= WARM_UP) milliseconds.push(performance.now() - started);
  }
  const last = await nextReport(served.controlPlane);
  if (last.running < requests) throw new Error(`only ${last.running} requests still ran at the end`);
  const stepMs = (last.at - first.at) / (last.step - first.step);
  const steps = milliseconds.map((ms) => ms / stepMs).sort((a, b) => a - b);
  const result = {
    requests,
    changes,
    stepMs: Number(stepMs.toFixed(1)),
    stepsMedian: Number(quantile(steps, 0.5).toFixed(2)),
    steps95: Number(quantile(steps, 0.95).toFixed(2)),
    stepsMost: Number((steps.at(-1) ?? Number.NaN).toFixed(2)),
  };
  console.log(
    values.json
      ? JSON.stringify(result)
      : `${changes} changes, ${requests} running requests, ${result.stepMs} ms a step: in force after ` +
          `${result.stepsMedian} steps (median), ${result.steps95} (95th percentile), ${result.stepsMost} (most)`,
  );
  stop.abort();
  await Promise.all(load);
} finally {
  await served.stop();
}
