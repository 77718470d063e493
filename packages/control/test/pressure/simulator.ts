import { type Bounds, nextPressure, start } from "../../src/pressure/controller.ts";

/** A request of a load: when it comes (in scheduler steps), and how long it is (in tokens). */
export interface Arrival {
  readonly at: number;
  readonly prompt: number;
  readonly output: number;
}

export interface Machine {
  readonly blocks: number;
  readonly blockSize: number;
  readonly interval: number;
  readonly maxRunning: number;
}

export interface Outcome {
  readonly steps: number;
  readonly evicted: number;
  readonly preemptions: number;
  /** Budget at each observation. */
  readonly budgets: readonly number[];
}

/** Steps between two observations, and until a new budget is in force. */
const OBSERVE = 10;
const DELAY = 2;

interface Request {
  readonly prompt: number;
  readonly length: number;
  computed: number;
  resident: number;
}

/** An engine in integers: admission, growth, rounds, preemption of the newest; as kernels/triattn/plan.py has it. */
export function simulate(load: readonly Arrival[], machine: Machine, budget: number | Bounds): Outcome {
  const { blocks, blockSize, interval, maxRunning } = machine;
  const bounds = typeof budget === "number" ? { min: budget, max: budget } : budget;
  const arrivals = load.toSorted((a, b) => a.at - b.at);
  const waiting: Request[] = [];
  const running: Request[] = [];
  const budgets: number[] = [];
  const setting = { ...bounds, capacity: blocks * blockSize, block: blockSize, interval };
  let pressure = start(bounds);
  let [current, evicted, preemptions, step, next] = [bounds.max, 0, 0, 0, 0];
  let coming: { at: number; budget: number } | undefined;
  const used = () => running.reduce((sum, { resident }) => sum + Math.ceil(resident / blockSize), 0);
  const round = (request: Request) => {
    if (request.resident < current + interval) return;
    evicted += request.resident - current;
    request.resident = current;
  };
  for (; next < arrivals.length || waiting.length > 0 || running.length > 0; step++) {
    if (step > 1_000_000) throw new Error("the load never ends");
    for (; (arrivals[next]?.at ?? Number.POSITIVE_INFINITY) <= step; next++) {
      const { prompt, output } = arrivals[next] as Arrival;
      waiting.push({ prompt, length: prompt + output, computed: prompt, resident: 0 });
    }
    if (coming !== undefined && coming.at <= step) [current, coming] = [coming.budget, undefined];
    for (const request of running) round(request);
    for (let first = waiting[0]; first !== undefined && running.length < maxRunning; first = waiting[0]) {
      // A long prompt, or one that is computed again, is compressed between its chunks.
      const kept = first.computed >= current + interval ? current : first.computed;
      if (used() + Math.ceil((kept + 1) / blockSize) > blocks) break;
      evicted += first.computed - kept;
      first.resident = kept;
      running.push(first);
      waiting.shift();
    }
    for (const request of [...running]) {
      if (!running.includes(request)) continue;
      while (request.resident % blockSize === 0 && used() + 1 > blocks) {
        const newest = running.pop() as Request;
        newest.resident = 0;
        waiting.unshift(newest);
        preemptions += 1;
        if (newest === request) break;
      }
      if (!running.includes(request)) continue;
      request.resident += 1;
      request.computed += 1;
      if (request.computed >= request.length) running.splice(running.indexOf(request), 1);
    }
    if (step % OBSERVE !== 0) continue;
    const usage = used() / blocks;
    pressure = nextPressure(pressure, { usage, running: running.length, waiting: waiting.length }, setting);
    const wanted = pressure.budget;
    if (wanted !== (coming?.budget ?? current)) coming = { at: step + DELAY, budget: wanted };
    budgets.push(wanted);
  }
  return { steps: step, evicted, preemptions, budgets };
}

/** How often a budget turned round: from growing to shrinking, or back. */
export function turns(budgets: readonly number[]): number {
  const moves = budgets
    .slice(1)
    .map((budget, i) => Math.sign(budget - (budgets[i] as number)))
    .filter((move) => move !== 0);
  return moves.slice(1).filter((move, i) => move !== moves[i]).length;
}
