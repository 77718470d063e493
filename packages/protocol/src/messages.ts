import { z } from "zod";
import { PolicyDocument } from "./policy.ts";

/** Version of the wire. A peer of another version is refused. */
export const PROTOCOL_VERSION = 1;

const count = z.int().min(0);
/**
 * A 64-bit count: a BigInt in TypeScript, an int in Python. MessagePack carries small integers
 * short, so a decoder sees a number there; both are taken.
 */
const bigCount = z.preprocess(
  (value) => (Number.isSafeInteger(value) ? BigInt(value as number) : value),
  z.bigint().min(0n).max(9223372036854775807n),
);

export const Rotary = z
  .strictObject({
    type: z.string().describe("default, linear, yarn, llama3, … as in the model's configuration."),
    theta: z.number(),
    dim: z.int().min(2).describe("Rotated dimensions of a head."),
    attentionScaling: z.number().describe("Factor on cos and sin."),
    pairing: z.enum(["half", "interleaved"]),
  })
  .meta({ id: "Rotary" });

export const ModelGeometry = z
  .strictObject({
    name: z.string(),
    fingerprint: z.string().describe("Hash of the geometry and rotary parameters."),
    weights: z.union([z.string(), z.null()]).describe("Hash over the weights, where they could be read."),
    layers: z.int().min(1),
    queryHeads: z.int().min(1),
    kvHeads: z.int().min(1),
    headDim: z.int().min(1),
    rotary: z.union([Rotary, z.null()]),
  })
  .meta({ id: "ModelGeometry", description: "Numbers of the whole model, not of one rank." });

export const EngineInfo = z
  .strictObject({
    name: z.enum(["vllm", "sglang"]),
    version: z.string(),
    runner: z.string().describe("v1 or v2 for vLLM."),
    pid: count,
    worldSize: z.int().min(1),
  })
  .meta({ id: "EngineInfo" });

export const CacheInfo = z
  .strictObject({
    blockSize: z.int().min(1),
    blocks: count.describe("Usable blocks of the pool."),
    maxModelLen: count,
    dtype: z.string(),
  })
  .meta({ id: "CacheInfo" });

export const Counters = z
  .strictObject({
    step: bigCount,
    running: count,
    waiting: count,
    residentTokens: count.describe("Tokens whose KV is in the cache now, over all running requests."),
    peakResidentTokens: count,
    usedBlocks: count,
    peakUsedBlocks: count,
    tokensGenerated: bigCount,
    requestsFinished: bigCount,
    preemptions: bigCount,
    rounds: bigCount,
    tokensEvicted: bigCount,
    blocksReclaimed: bigCount,
    roundsSkipped: bigCount.describe("Rounds put off for lack of a free block to copy a shared one to."),
    eventsDropped: bigCount,
  })
  .meta({ id: "Counters", description: "Totals since the engine started, and the current state." });

export const RoundEvent = z
  .strictObject({
    kind: z.literal("round"),
    step: bigCount,
    request: z.string(),
    revision: count,
    budget: count,
    computed: count.describe("Logical length at the round."),
    evicted: count.describe("Tokens evicted by this round."),
    evictedTotal: count.describe("E after this round."),
    blocksReclaimed: count,
    blocksCopied: count.describe("Shared blocks copied before they were compacted."),
  })
  .meta({ id: "RoundEvent" });

export const SkipEvent = z
  .strictObject({ kind: z.literal("skip"), step: bigCount, request: z.string(), reason: z.string() })
  .meta({ id: "SkipEvent" });

export const FinishEvent = z
  .strictObject({
    kind: z.literal("finish"),
    step: bigCount,
    request: z.string(),
    reason: z.enum(["finished", "aborted", "preempted"]),
    computed: count,
    evictedTotal: count,
    rounds: count,
  })
  .meta({ id: "FinishEvent", description: "A request gave its blocks back." });

export const EngineEvent = z
  .discriminatedUnion("kind", [RoundEvent, SkipEvent, FinishEvent])
  .meta({ id: "EngineEvent" });

/** Engine → control. */
export const Hello = z
  .strictObject({
    type: z.literal("hello"),
    protocol: z.literal(PROTOCOL_VERSION),
    engineId: z.string().min(1).max(128).describe("Constant for the life of an engine process."),
    engine: EngineInfo,
    model: ModelGeometry,
    cache: CacheInfo,
    capabilities: z.array(z.string()).max(256),
    revision: count.describe("Policy revision in force; 0 before the first."),
    nextEvent: bigCount.describe("Number that the next event will carry."),
  })
  .meta({ id: "Hello" });

export const Ack = z
  .strictObject({
    type: z.literal("ack"),
    revision: count,
    step: bigCount.describe("Scheduler step at which every rank began to use this revision."),
  })
  .meta({ id: "Ack" });

export const Refusal = z
  .strictObject({
    type: z.literal("refusal"),
    revision: count,
    field: z.string(),
    value: z.string(),
    remedy: z.string(),
    message: z.string(),
  })
  .meta({ id: "Refusal", description: "The engine cannot use this policy; the one before stays in force." });

export const Events = z
  .strictObject({
    type: z.literal("events"),
    first: bigCount.describe("Number of the first event of this batch; numbers are consecutive."),
    events: z.array(EngineEvent).max(4096),
  })
  .meta({ id: "Events" });

export const CountersReport = z
  .strictObject({ type: z.literal("counters"), counters: Counters })
  .meta({ id: "CountersReport" });

export const Heartbeat = z
  .strictObject({
    type: z.literal("heartbeat"),
    revision: count.describe("Policy revision in force; 0 before the first."),
    nextEvent: bigCount.describe("Number that the next event will carry."),
  })
  .meta({
    id: "Heartbeat",
    description: "Sent while the engine is idle, so that a dead peer is told from a quiet one.",
  });

export const Bye = z.strictObject({ type: z.literal("bye"), reason: z.string() }).meta({ id: "Bye" });

export const EngineMessage = z
  .discriminatedUnion("type", [Hello, Ack, Refusal, Events, CountersReport, Heartbeat, Bye])
  .meta({ id: "EngineMessage" });

/** Control → engine. */
export const SetPolicy = z
  .strictObject({
    type: z.literal("policy"),
    revision: z.int().min(1),
    policy: PolicyDocument,
    statistics: z
      .union([z.string(), z.null()])
      .describe("Path of the statistics file, if the policy needs one."),
  })
  .meta({ id: "SetPolicy" });

export const Rejected = z
  .strictObject({ type: z.literal("rejected"), message: z.string() })
  .meta({ id: "Rejected", description: "The control plane will not serve this engine." });

export const Identify = z
  .strictObject({ type: z.literal("identify") })
  .meta({ id: "Identify", description: "Asks the engine to say hello (again)." });

export const ControlMessage = z
  .discriminatedUnion("type", [SetPolicy, Rejected, Identify])
  .meta({ id: "ControlMessage" });

export type ModelGeometry = z.infer<typeof ModelGeometry>;
export type Counters = z.infer<typeof Counters>;
export type EngineEvent = z.infer<typeof EngineEvent>;
export type Events = z.infer<typeof Events>;
export type Hello = z.infer<typeof Hello>;
export type EngineInfo = z.infer<typeof EngineInfo>;
export type CacheInfo = z.infer<typeof CacheInfo>;
export type SetPolicy = z.infer<typeof SetPolicy>;
export type EngineMessage = z.infer<typeof EngineMessage>;
export type ControlMessage = z.infer<typeof ControlMessage>;
