import { defineConfig } from "vitest/config";

/** Tests of whole processes that start, hang and die are left to the full run. */
const slow = process.env.TRIATTN_QUICK === "1" ? ["**/*.slow.test.ts"] : [];

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: "unit",
          include: ["packages/*/test/**/*.test.ts", "test/**/*.test.ts", "scripts/test/**/*.test.ts"],
          exclude: [
            "**/node_modules/**",
            "**/*.engine.test.ts",
            "**/*.browser.test.ts",
            "**/*.sglang.test.ts",
            "test/package/**",
            ...slow,
          ],
          testTimeout: 20_000,
          maxWorkers: 2,
        },
      },
      {
        // The dashboard in a real Chromium; skipped, visibly, where there is none.
        test: {
          name: "browser",
          include: ["packages/dashboard/test/**/*.browser.test.ts", "test/**/*.browser.test.ts"],
          testTimeout: 60_000,
          maxWorkers: 1,
        },
      },
      {
        // The npm package, built, packed and installed elsewhere.
        test: { name: "package", include: ["test/package/**/*.test.ts"], testTimeout: 60_000 },
      },
      {
        // Real engines, which take seconds to start and all of the machine: one file at a time.
        test: {
          name: "engine",
          include: ["test/**/*.engine.test.ts"],
          fileParallelism: false,
          testTimeout: 300_000,
          hookTimeout: 300_000,
        },
      },
      {
        // The second engine, in an environment of its own.
        test: {
          name: "sglang",
          include: ["test/**/*.sglang.test.ts"],
          fileParallelism: false,
          testTimeout: 600_000,
          hookTimeout: 300_000,
        },
      },
    ],
  },
});
