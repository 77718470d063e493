import { expect, test } from "vitest";
import { tryDocuments } from "../fuzz/documents.ts";
import { tryFrames, tryReconnects } from "../fuzz/plane.ts";
import { Chance } from "../fuzz/random.ts";

// Full counts: npx -y pnpm@12 fuzz.

test("mutated policies and rules are taken as they are, or refused with a reason", () => {
  const { accepted, refused } = tryDocuments(new Chance(1), 3000);
  // Both ends are reached, or it shows nothing.
  expect(accepted).toBeGreaterThan(100);
  expect(refused).toBeGreaterThan(1000);
});

test("hostile frames: a good engine is heard all along", async () => {
  const { sent, dropped } = await tryFrames(new Chance(1), 10_000);
  expect(sent).toBe(10_000);
  for (const kind of ["framing", "malformed", "invalid", "version"])
    expect([kind, dropped[kind] ?? 0]).not.toEqual([kind, 0]);
}, 120_000);

test("engines that come and go leave nothing", async () => {
  const { engines, files } = await tryReconnects(60);
  expect(engines).toBe(31);
  expect(files).toBeLessThanOrEqual(3);
}, 60_000);
