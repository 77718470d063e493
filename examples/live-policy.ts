/**
 * Starts a served model, changes the policy while a request runs, and prints what happened.
 *
 *     node --import tsx examples/live-policy.ts MODEL [PYTHON] [-- ENGINE FLAGS…]
 */
import { type ControlPlane, serve } from "triattn";

const separator = process.argv.indexOf("--");
const own = process.argv.slice(2, separator < 0 ? undefined : separator);
const engineFlags = separator < 0 ? [] : process.argv.slice(separator + 1);
const [model, python] = own;
if (model === undefined) throw new Error("usage: live-policy.ts MODEL [PYTHON] [-- ENGINE FLAGS…]");

async function countRounds(plane: ControlPlane, found: Map<number, number>): Promise<void> {
  for await (const event of plane.events()) {
    if (event.type !== "event" || event.event.kind !== "round") continue;
    found.set(event.event.revision, (found.get(event.event.revision) ?? 0) + 1);
  }
}

const served = await serve({ model, policy: "keydiff", budget: 384, interval: 32, python, engineFlags });
try {
  await served.ready;
  const rounds = new Map<number, number>();
  const counting = countRounds(served.controlPlane, rounds);

  const answer = fetch(`${served.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model, prompt: "Once upon a time", max_tokens: 800, ignore_eos: true }),
  });
  // Once the first policy has fired, another one takes over in mid-request.
  while (rounds.size === 0) await new Promise((wake) => setTimeout(wake, 20));
  const { revision, engines } = await served.controlPlane.setPolicy({
    name: "sample",
    budget: 256,
    interval: 32,
    terms: [{ kind: "random" }],
    normalize: "none",
    selection: "per_layer_per_head",
  });
  const response = (await (await answer).json()) as { usage: { completion_tokens: number } };
  // Counters arrive twice a second.
  await new Promise((wake) => setTimeout(wake, 1200));
  const [counters] = Object.values(served.controlPlane.counters().engines);
  console.log(
    JSON.stringify({
      tokens: response.usage.completion_tokens,
      revision,
      step: Number(engines[0]?.step),
      roundsByRevision: Object.fromEntries(rounds),
      rounds: Number(counters?.rounds),
      tokensEvicted: Number(counters?.tokensEvicted),
      blocksReclaimed: Number(counters?.blocksReclaimed),
    }),
  );
  await served.stop();
  await counting;
} finally {
  await served.stop();
}
