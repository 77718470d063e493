import fc from "fast-check";
import { expect, test } from "vitest";
import { EventStream } from "../src/event-stream.ts";

type Item = number | { dropped: number };
const stream = (capacity: number) => new EventStream<Item>(capacity, (dropped) => ({ dropped }));

test("delivers to a consumer that waits, in order, until it ends", async () => {
  const events = stream(10);
  const waiting = [events.next(), events.next()];
  for (const item of [1, 2, 3]) events.push(item);
  events.end();
  expect((await Promise.all(waiting)).map(({ value }) => value)).toStrictEqual([1, 2]);
  const rest: Item[] = [];
  for await (const item of events) rest.push(item);
  expect(rest).toStrictEqual([3]);
  expect(events.push(4)).toBe(0);
  expect(await events.next()).toStrictEqual({ done: true, value: undefined });
});

test("leaving the loop ends the stream", async () => {
  let ended = 0;
  const events = new EventStream<number>(
    10,
    () => 0,
    () => ended++,
  );
  events.push(1);
  for await (const item of events) {
    expect(item).toBe(1);
    break;
  }
  expect(ended).toBe(1);
});

test("against a model: bounded, newest kept, drops counted exactly", async () => {
  const operations = fc.array(fc.oneof(fc.constant("push" as const), fc.constant("pull" as const)), {
    maxLength: 5000,
  });
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1, max: 50 }), operations, async (capacity, steps) => {
      const events = stream(capacity);
      const queue: number[] = [];
      let dropped = 0;
      let next = 0;
      for (const step of steps) {
        if (step === "push") {
          queue.push(next);
          const overflow = queue.length > capacity;
          if (overflow) {
            queue.shift();
            dropped += 1;
          }
          expect(events.push(next++)).toBe(overflow ? 1 : 0);
        } else if (dropped > 0) {
          expect((await events.next()).value).toStrictEqual({ dropped });
          dropped = 0;
        } else if (queue.length > 0) {
          expect((await events.next()).value).toBe(queue.shift());
        }
      }
    }),
    { numRuns: 30 },
  );
});
