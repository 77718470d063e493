import { z } from "zod";
import { EnvironmentError } from "../errors.ts";
import { columns } from "../text.ts";
import { type Bar, barChart, colourOf } from "./plot.ts";
import { moduleEnvironment, runModule } from "./run.ts";

/** One round of a policy as `python -m triattn.bench.rounds` measures it. */
export const Kernel = z.object({
  device: z.string(),
  copyBytesPerSecond: z.number(),
  policy: z.string(),
  requests: z.int(),
  budget: z.int(),
  interval: z.int(),
  microseconds: z.number(),
  spread: z.number(),
  bytes: z.number(),
  floorMicroseconds: z.number(),
  timesFloor: z.number(),
  timesRandom: z.number().nullable(),
});
export type Kernel = z.infer<typeof Kernel>;

export interface KernelsReport {
  readonly command: string;
  readonly device: string;
  /** Of a plain copy in the same process, read plus written: what the floors are made of. */
  readonly copyBytesPerSecond: number;
  readonly kernels: readonly Kernel[];
}

const Gpus = z.object({
  outcomes: z.array(
    z.object({ ok: z.boolean(), message: z.string().optional(), result: z.unknown().optional() }),
  ),
});

/** Throws EnvironmentError where torch sees no GPU: an interpreted kernel's time says nothing. */
async function needGpu(python: string, environment: NodeJS.ProcessEnv): Promise<void> {
  const asked = JSON.stringify({ engine: "none" });
  const { outcomes } = Gpus.parse(await runModule(python, "triattn.doctor", [asked], environment, () => {}));
  const [cuda] = outcomes;
  const devices = (cuda?.result as { devices?: unknown[] } | undefined)?.devices ?? [];
  if (devices.length > 0) return;
  throw new EnvironmentError(
    "gpu",
    cuda?.message ?? "none that torch sees",
    "the kernels are measured on a GPU; without one they run in an interpreter, whose times say nothing. triattn doctor says more",
  );
}

export interface KernelsOptions {
  readonly budgets: readonly number[];
  readonly requests: readonly number[];
  readonly interval: number;
  readonly policies: readonly string[];
}

/** Measures rounds of policies beside a plain copy of the same bytes. */
export async function measureKernels(
  python: string,
  options: KernelsOptions,
  command: string,
  onLine: (line: string) => void,
  abort?: AbortSignal,
): Promise<KernelsReport> {
  const environment = await moduleEnvironment(process.env);
  await needGpu(python, environment);
  // Without the random arm there is nothing to stand beside.
  const policies = [...new Set(["random", ...options.policies])];
  const asked = JSON.stringify({ ...options, policies });
  const result = await runModule(python, "triattn.bench.rounds", [asked], environment, onLine, abort);
  return kernelsReport(command, z.array(Kernel).min(1).parse(result));
}

export function kernelsReport(command: string, kernels: readonly Kernel[]): KernelsReport {
  const [first] = kernels;
  if (first === undefined) throw new Error("nothing was measured");
  return { command, device: first.device, copyBytesPerSecond: first.copyBytesPerSecond, kernels };
}

export function kernelsTable({ device, copyBytesPerSecond, kernels }: KernelsReport): string {
  const head = [
    "policy",
    "requests",
    "budget",
    "us",
    "spread",
    "MB",
    "copy us",
    "x copy",
    "of floor",
    "x random",
  ];
  const rows = kernels.map((k) => [
    k.policy,
    String(k.requests),
    String(k.budget),
    k.microseconds.toFixed(1),
    `${(100 * k.spread).toFixed(1)} %`,
    (k.bytes / 1e6).toFixed(1),
    k.floorMicroseconds.toFixed(1),
    k.timesFloor.toFixed(2),
    `${(100 / k.timesFloor).toFixed(0)} %`,
    k.timesRandom?.toFixed(2) ?? "-",
  ]);
  const copy = `${device}; a plain copy moves ${(copyBytesPerSecond / 1e12).toFixed(2)} TB/s, read plus written`;
  return [copy, columns([head, ...rows], 1)].join("\n");
}

export function kernelsPlot({ device, kernels }: KernelsReport): string {
  const bars = kernels.map(
    (k): Bar => ({
      text: `${k.policy}, ${k.requests} requests, budget ${k.budget}`,
      value: k.timesFloor,
      colour: colourOf(k.policy),
      label: `${k.timesFloor.toFixed(2)} x, ${k.microseconds.toFixed(0)} us`,
    }),
  );
  return barChart(`One round over a plain copy of its bytes, ${device}`, bars, "times the copy");
}
