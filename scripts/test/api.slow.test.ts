import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { path, reference } from "../docs/api.ts";

test("docs/api.md is what the source says", () => {
  const text = reference();
  expect(text.length).toBeGreaterThan(20_000);
  expect(text, "after a change: npx -y pnpm@12 docs:api").toBe(readFileSync(path, "utf8"));
}, 60_000);
