import { z } from "zod";

/** One arm as a measuring process reports it. */
export const Arm = z.object({
  name: z.string(),
  budget: z.int().optional(),
  /** Length in tokens that each request of a `full` arm grows to. */
  generation: z.int().optional(),
  requests: z.int().optional(),
  meanResident: z.number().optional(),
  tokensPerSecond: z.number(),
  stepMs: z.number(),
  medianStepMs: z.number(),
  /** (highest - lowest) / median over the turns or, within one turn, over parts of 32 steps. */
  spread: z.number(),
  turns: z.array(z.number()).optional(),
  rounds: z.int(),
  tokensEvicted: z.int(),
  preemptions: z.int(),
});
export type Arm = z.infer<typeof Arm>;

/** What one engine process measured. */
export const Measurement = z.object({
  model: z.string(),
  device: z.string(),
  engine: z.object({ name: z.string(), version: z.string(), runner: z.string() }),
  requests: z.int(),
  interval: z.int(),
  arms: z.array(Arm),
  firstTokenMs: z.number(),
  startSeconds: z.number(),
  cacheTokens: z.int(),
  blockSize: z.int(),
});
export type Measurement = z.infer<typeof Measurement>;

/** A benchmark as it is committed under docs/benchmarks. */
export const Report = z.object({
  command: z.string(),
  device: z.string(),
  engine: z.object({ name: z.string(), version: z.string(), runner: z.string() }),
  requests: z.int(),
  interval: z.int(),
  cacheTokens: z.int(),
  firstTokenMs: z.object({ engine: z.number().nullable(), idle: z.number().nullable() }),
  runs: z.array(z.object({ model: z.string(), budget: z.int().nullable(), arms: z.array(Arm) })),
  /** Tokens a second of one arm over those of another. */
  ratios: z.array(
    z.object({ model: z.string(), budget: z.int(), of: z.string(), to: z.string(), ratio: z.number() }),
  ),
  kernels: z.array(z.unknown()),
});
export type Report = z.infer<typeof Report>;
