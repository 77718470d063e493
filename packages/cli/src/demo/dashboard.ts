import { setTimeout as sleep } from "node:timers/promises";
import { toJson } from "../serve/output.ts";
import { prepare } from "../serve/prepare.ts";
import { type Served, start } from "../serve/serve.ts";
import type { ArmOptions } from "./arm.ts";
import { ask, questions } from "./requests.ts";

export interface DashboardDemoOptions extends Omit<ArmOptions, "title"> {
  /** As `serve` takes it. */
  readonly dashboard: boolean | string;
  /** Where it is, as one line of JSON on stdout. */
  readonly json: boolean;
  /** Whether somebody asked for the end. */
  readonly stopping: () => boolean;
}

/** Seconds between two generations of one slot: the load comes and goes. */
const PAUSE_S = 6;
/** Slots begin one after another, so that their rounds do not fall together. */
const STAGGER_S = 3;
const TOPICS = 64;

/** Serves the dashboard, keeps generations going, and returns when the engine has been stopped. */
export async function serveDashboard(options: DashboardDemoOptions): Promise<void> {
  const { requests, tokens, say, stopping } = options;
  const plan = await prepare({ ...options.serve, dashboard: options.dashboard });
  say(`starting vLLM ${plan.engine.version} …`);
  const served = await start(plan, { onLine: options.onLine });
  options.onStart(served);
  try {
    await served.ready;
    say(`ready: up to ${requests} generations of ${tokens} tokens at once; Ctrl-C ends it`);
    say(`dashboard at ${served.dashboard}`);
    if (options.json) {
      process.stdout.write(`${toJson({ event: "ready", dashboard: served.dashboard, url: served.url })}\n`);
    }
    const ended = new AbortController();
    const slots = Array.from({ length: requests }, (_, slot) =>
      keepAsking(served, slot, tokens, ended.signal),
    );
    // A question that fails while nobody asked for the end is the engine's failure.
    const exit = await Promise.race([served.exited, Promise.all(slots).then(() => served.exited)]).finally(
      () => ended.abort(),
    );
    if (!stopping()) throw served.died(exit);
  } catch (error) {
    if (!stopping()) throw error;
  } finally {
    await served.stop();
  }
}

/** Asks one question after another, with pauses, until the signal; then it resolves. */
async function keepAsking(served: Served, slot: number, tokens: number, signal: AbortSignal): Promise<void> {
  const { url, plan, exited } = served;
  if (url === undefined) throw new Error("the demo needs an address to send to");
  const asked = questions(TOPICS);
  const gone = exited.then(() => undefined);
  const pause = (seconds: number) => sleep(seconds * 1000, undefined, { signal }).catch(() => {});
  await pause(slot * STAGGER_S);
  for (let turn = 0; !signal.aborted; turn++) {
    const question = asked[(slot + turn * 7) % TOPICS] ?? "";
    try {
      await ask(url, plan.model, question, tokens);
    } catch (error) {
      // The engine's end says more than a connection that broke.
      await Promise.race([gone, sleep(2000)]);
      if (signal.aborted) return;
      throw error;
    }
    await pause(PAUSE_S * (0.5 + ((slot + turn) % 3) / 2));
  }
}
