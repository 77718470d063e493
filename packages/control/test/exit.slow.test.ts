import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { expect, test } from "vitest";

/** One in ten of them would hang for ever, were zeromq.js left to close its observers by itself. */
const PROCESSES = 12;
const script = `
import { createControlPlane } from ${JSON.stringify(new URL("../src/index.ts", import.meta.url).href)};
const plane = await createControlPlane({ policy: "keydiff" });
await plane.setPolicy("random");
console.log("open");
await plane.close();
`;

async function run(count: number): Promise<void> {
  const args = ["--import", "tsx", "--input-type=module", "-e", script];
  for (let i = 0; i < count; i += 1) {
    const { stdout } = await promisify(execFile)(process.execPath, args, { timeout: 20_000 });
    expect(stdout).toBe("open\n");
  }
}

test("a process ends once its control plane is closed", async () => {
  await Promise.all([run(PROCESSES / 2), run(PROCESSES / 2)]);
}, 120_000);
