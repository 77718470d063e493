import { setTimeout as sleep } from "node:timers/promises";
import type { ControlPlane } from "@triattn/control";
import type { Counters, PolicyInput } from "@triattn/protocol";
import { prepare, type ServeOptions } from "../serve/prepare.ts";
import { type Served, start } from "../serve/serve.ts";
import { ask, questions } from "./requests.ts";

/** What one arm of the demo measured. */
export interface ArmResult {
  readonly requests: number;
  readonly tokensGenerated: number;
  /** From the first request sent to the last answer. */
  readonly seconds: number;
  readonly tokensPerSecond: number;
  readonly peakResidentTokens: number;
  readonly peakBlocks: number;
  readonly preemptions: number;
  readonly rounds: number;
  readonly tokensEvicted: number;
  readonly blocksReclaimed: number;
}

export interface Arm {
  readonly result: ArmResult;
  /** The answer to the first question. */
  readonly answer: string;
  readonly engine: { readonly name: string; readonly version: string; readonly runner: string };
  readonly cacheBlocks: number;
}

export interface ArmOptions {
  readonly title: string;
  readonly serve: Omit<ServeOptions, "policy"> & { readonly policy: PolicyInput };
  readonly requests: number;
  readonly tokens: number;
  /** Progress, for people. */
  readonly say: (text: string) => void;
  readonly onLine: (line: string) => void;
  /** Told of the engine as soon as it runs, so that it can be stopped. */
  readonly onStart: (served: Served) => void;
}

/** Starts an engine, sends it the demo's requests all at once, reads the counters, stops it. */
export async function runArm(options: ArmOptions): Promise<Arm> {
  const { title, requests, tokens, say } = options;
  const plan = await prepare(options.serve);
  const began = performance.now();
  say(`${title}: starting vLLM ${plan.engine.version} …`);
  const served = await start(plan, { onLine: options.onLine });
  options.onStart(served);
  try {
    await served.ready;
    say(
      `${title}: ready after ${((performance.now() - began) / 1000).toFixed(0)} s; ${requests} requests of ${tokens} tokens …`,
    );
    const measured = await measure(served, requests, tokens, (text) => say(`${title}: ${text}`));
    const [engine] = served.controlPlane.engines();
    if (engine === undefined) throw new Error("the engine has gone");
    const { name, version, runner } = engine.hello.engine;
    return { ...measured, engine: { name, version, runner }, cacheBlocks: engine.hello.cache.blocks };
  } finally {
    await served.stop();
  }
}

const PROGRESS_MS = 10_000;

async function measure(served: Served, requests: number, tokens: number, say: (text: string) => void) {
  const { url, controlPlane, plan } = served;
  if (url === undefined) throw new Error("the demo needs an address to send to");
  const progress = setInterval(() => {
    const counters = newest(controlPlane);
    if (counters !== undefined)
      say(`${counters.tokensGenerated} tokens, ${counters.running} requests running`);
  }, PROGRESS_MS);
  const died = served.exited.then((exit) => Promise.reject(served.died(exit)));
  died.catch(() => {});
  try {
    const began = performance.now();
    const all = questions(requests).map((question) => ask(url, plan.model, question, tokens));
    const answers = await Promise.race([Promise.all(all), died]);
    const seconds = (performance.now() - began) / 1000;
    const tokensGenerated = answers.reduce((sum, answer) => sum + answer.tokens, 0);
    const counters = await finalCounters(controlPlane, requests);
    const result: ArmResult = {
      requests,
      tokensGenerated,
      seconds: Number(seconds.toFixed(2)),
      tokensPerSecond: Number((tokensGenerated / seconds).toFixed(1)),
      peakResidentTokens: counters.peakResidentTokens,
      peakBlocks: counters.peakUsedBlocks,
      preemptions: Number(counters.preemptions),
      rounds: Number(counters.rounds),
      tokensEvicted: Number(counters.tokensEvicted),
      blocksReclaimed: Number(counters.blocksReclaimed),
    };
    return { result, answer: answers[0]?.text ?? "" };
  } finally {
    clearInterval(progress);
  }
}

function newest(controlPlane: ControlPlane): Counters | undefined {
  return Object.values(controlPlane.counters().engines)[0];
}

/** The counters after the last request; engines report twice a second. */
async function finalCounters(controlPlane: ControlPlane, requests: number): Promise<Counters> {
  for (let tries = 0; tries < 50; tries++) {
    const counters = newest(controlPlane);
    if (counters !== undefined && counters.requestsFinished >= BigInt(requests)) return counters;
    await sleep(100);
  }
  const counters = newest(controlPlane);
  if (counters === undefined) throw new Error("the engine reported no counters");
  return counters;
}
