import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { onTestFinished } from "vitest";
import {
  type ControlEvent,
  type ControlPlane,
  type ControlPlaneOptions,
  createControlPlane,
} from "../src/index.ts";

export const silent = pino({ level: "silent" });

/** A logger, and the lines that it was given. */
export function recorder() {
  const lines: { msg: string; level: number; kind?: string }[] = [];
  return {
    lines,
    logger: pino({ level: "debug" }, { write: (line: string) => lines.push(JSON.parse(line)) }),
  };
}

/** A private directory that goes with the test. */
export function temporaryDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), "triattn-test-"));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

export async function startPlane(options: ControlPlaneOptions = {}): Promise<ControlPlane> {
  const plane = await createControlPlane({ logger: silent, ...options });
  onTestFinished(() => plane.close());
  return plane;
}

export async function eventually(condition: () => boolean, timeoutMs = 5000): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!condition()) {
    if (performance.now() > end) throw new Error("timed out");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Collects a plane's events as they happen. */
export function record(plane: ControlPlane): ControlEvent[] {
  const seen: ControlEvent[] = [];
  void (async () => {
    for await (const event of plane.events()) seen.push(event);
  })();
  return seen;
}

export const ofType = <T extends ControlEvent["type"]>(events: readonly ControlEvent[], type: T) =>
  events.filter((event): event is Extract<ControlEvent, { type: T }> => event.type === type);
