import type { Random } from "../random.ts";
import type { Draft, TraceTask } from "./trace.ts";

const RING = [..."abcdefghijklmnopqrstuvwxyz"];
const KEYS = [..."ABCDEFGHIJKLMNOPQRSTUVWXYZ"];
const LINE = 7;

/** Something to derive, write down and remember, after the line whose counter is `at`. */
interface Event {
  readonly at: number;
  /** Keys and the digits added for them. */
  readonly sums: readonly (readonly [key: string, digit: number])[];
}

const three = (value: number) => String(value).padStart(3, "0");

/**
 * A long walk round a ring of digits with its running sum modulo 10, one line a step: counter (three digits), letter,
 * digit, sum. After the line of an event's counter comes a line `*`: for each key its digit, and the sum of the walk and
 * of the digits so far. Only whoever was there knows these sums: they are in no prompt. At the end they are asked for.
 */
export function walk(
  ring: readonly (readonly [letter: string, digit: number])[],
  steps: number,
  events: readonly Event[],
  asked: readonly string[],
): {
  trace: string;
  answer: string;
  known: ReadonlyMap<string, number>;
  places: ReadonlyMap<string, number>;
} {
  const known = new Map<string, number>();
  const places = new Map<string, number>();
  let trace = "";
  let sum = 0;
  for (let left = steps; left > 0; left--) {
    const [letter, digit] = ring[(steps - left) % ring.length] as readonly [string, number];
    sum = (sum + digit) % 10;
    trace += `${three(left)}${letter}${digit}${sum}\n`;
    for (const event of events.filter(({ at }) => at === left)) {
      let own = sum;
      trace += "*";
      for (const [key, digit] of event.sums) {
        own = (own + digit) % 10;
        known.set(key, own);
        places.set(key, trace.length);
        trace += `${key}${digit}${own}`;
      }
      trace += "\n";
    }
  }
  const answer = `?${asked.map((key) => `${key}${known.get(key)}`).join("")}\n`;
  return { trace: trace + answer, answer, known, places };
}

interface Layout {
  readonly head: string;
  readonly steps: number;
  readonly events: readonly Event[];
  readonly asked: readonly string[];
}

function write(random: Random, { head, steps, events, asked }: Layout): Draft {
  const letters = random.shuffle(RING).slice(0, random.whole(6, 20));
  const ring = letters.map((letter) => [letter, random.whole(0, 9)] as const);
  const { trace, answer, known, places } = walk(ring, steps, events, asked);
  const due = events.map(
    ({ at, sums }) => `@${three(at)}${sums.map(([key, digit]) => key + digit).join("")}\n`,
  );
  // The ring ends with its first letter, so that every letter's successor can be read off it.
  const shown = `${ring.map(([letter, digit]) => letter + digit).join("")}${letters[0]}`;
  return {
    prompt: `${head}\n${shown}\n${due.join("")}#${three(steps)}\n?${asked.join("")}\n`,
    expected: trace,
    answer,
    metadata: {
      steps,
      asked,
      values: Object.fromEntries(asked.map((key) => [key, known.get(key)])),
      // Tokens between a value and the question for it.
      ages: Object.fromEntries(
        asked.map((key) => [key, trace.length - answer.length - (places.get(key) ?? 0)]),
      ),
    },
  };
}

const CODE = 6;

/** A passcode of six digits, derived once, early or late, and asked for at the end. */
export const passcode: TraceTask = {
  name: "passcode",
  description: "six digits derived at one point of a long walk, asked for at its end",
  least: 80,
  draft(random, length) {
    const asked = random.shuffle(KEYS).slice(0, CODE);
    const steps = Math.floor((length - 1 - (3 * CODE + 2) - (2 * CODE + 2)) / LINE);
    // Early more often than late: nine in ten in the first half.
    const part = random.next() < 0.9 ? random.next() * 0.5 : random.next();
    const at = Math.max(1, steps - Math.floor(part * steps));
    const sums = asked.map((key) => [key, random.whole(0, 9)] as const);
    return write(random, { head: "P", steps, events: [{ at, sums }], asked });
  },
};

/** Values of many keys, derived all along the walk, half of them asked for at the end in another order. */
export const recall: TraceTask = {
  name: "recall",
  description:
    "key-value recall: values derived all along a long walk, asked for at its end in another order",
  least: 100,
  draft(random, length) {
    const count = Math.min(24, Math.max(4, Math.floor(length / 60)));
    const keys = random.shuffle(KEYS).slice(0, count);
    const asked = random.shuffle(keys).slice(0, Math.ceil(count / 2));
    const steps = Math.floor((length - 1 - 5 * count - (2 * asked.length + 2)) / LINE);
    const counters = random.shuffle(Array.from({ length: steps }, (_, i) => i + 1)).slice(0, count);
    counters.sort((a, b) => b - a);
    const events = counters.map((at, i) => ({
      at,
      sums: [[keys[i] as string, random.whole(0, 9)] as const],
    }));
    return write(random, { head: "R", steps, events, asked });
  },
};
