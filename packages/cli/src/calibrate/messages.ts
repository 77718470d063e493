import { z } from "zod";

/** A line of `python -m triattn.calibrate --progress json`. */
export const CalibrationMessage = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("progress"),
    phase: z.enum(["load", "measure", "learn", "fit", "write"]),
    done: z.int().min(0),
    total: z.int().min(0),
  }),
  z.object({ type: z.literal("error"), field: z.string(), value: z.string(), remedy: z.string() }),
  z.object({
    type: z.literal("done"),
    out: z.string(),
    model: z.string(),
    fingerprint: z.string(),
    tokens: z.int(),
    layers: z.int(),
    queryHeads: z.int(),
    /** Part of the damage of eviction that each score avoids on text not fitted on; null: nothing was learned. */
    learned: z.record(z.string(), z.number()).nullable(),
    notices: z.array(z.string()),
    concentration: z.number(),
  }),
]);
export type CalibrationMessage = z.infer<typeof CalibrationMessage>;
export type CalibrationProgress = Extract<CalibrationMessage, { type: "progress" }>;
export type CalibrationResult = Extract<CalibrationMessage, { type: "done" }>;
