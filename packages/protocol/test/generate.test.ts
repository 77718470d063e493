import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

test("the Python side is what the schemas generate", () => {
  const script = fileURLToPath(new URL("../scripts/generate.ts", import.meta.url));
  const check = () =>
    execFileSync(process.execPath, ["--import", "tsx", script, "--check"], {
      encoding: "utf8",
      stdio: "pipe",
    });
  expect(check).not.toThrow();
}, 30_000);
