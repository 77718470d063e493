import { z } from "zod";
import { PolicyDocument } from "./policy.ts";

/** Version of the wire. A peer of another version is refused. */
export const PROTOCOL_VERSION = 1;

const count = z.int().min(0);
const seconds = z.number().min(0);
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
    roundBatches: bigCount.describe("Steps in which at least one round ran."),
    planSeconds: seconds.describe("Scheduler time spent on planning."),
    roundSeconds: seconds.describe(
      "Worker time of the batches of rounds: on a CPU measured, on a GPU by its own clock, from samples.",
    ),
    stallSeconds: seconds.describe(
      "Time that running requests waited for rounds: planning and rounds together.",
    ),
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

export const RequestState = z
  .strictObject({
    request: z.string().describe("The engine's id of it, as in events."),
    state: z.enum(["running", "waiting"]),
    priority: z.int(),
    tags: z.array(z.string()).max(64),
    rule: z.union([z.string(), z.null()]).describe("Name of the rule that matched it."),
    prompt: count.describe("Prompt tokens."),
    computed: count.describe("Logical length."),
    resident: count.describe("Tokens whose KV is in the cache."),
    budget: count.describe("Tokens that a round leaves it; 0: never compressed."),
    evictedTotal: count,
    rounds: count,
  })
  .meta({ id: "RequestState" });

export const RequestsReport = z
  .strictObject({
    type: z.literal("requests"),
    step: bigCount,
    requests: z.array(RequestState).max(4096),
    omitted: count.describe("Requests left out because there were too many."),
  })
  .meta({ id: "RequestsReport", description: "Sent while a control plane watches, see Watch." });

export const KeptReport = z
  .strictObject({
    type: z.literal("kept"),
    request: z.string(),
    step: bigCount,
    computed: z.int().min(1).describe("Logical length at the round that this shows."),
    resident: count.describe("Tokens kept by each layer and KV head."),
    layers: z.int().min(1).describe("Those of the last stage, with pipeline parallelism."),
    kvHeads: z.int().min(1).describe("All of the model, with tensor parallelism too."),
    bins: z.int().min(1).max(1024).describe("Equal slices of the logical positions [0, computed)."),
    counts: z
      .instanceof(Uint8Array)
      .meta({ type: "string", format: "binary" })
      .describe("uint16 little-endian [layers, kvHeads, bins]: tokens kept in each slice, at most 65535."),
  })
  .meta({ id: "KeptReport", description: "What a round of the watched request kept." });

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
  .discriminatedUnion("type", [
    Hello,
    Ack,
    Refusal,
    Events,
    CountersReport,
    RequestsReport,
    KeptReport,
    Heartbeat,
    Bye,
  ])
  .meta({ id: "EngineMessage" });

export const EngineRule = z
  .strictObject({
    name: z.string().regex(/^[a-z0-9][a-z0-9._-]{0,63}$/),
    minPriority: z.union([z.int(), z.null()]).describe("Matches requests of at least this priority number."),
    maxPriority: z.union([z.int(), z.null()]).describe("Matches requests of at most this priority number."),
    tags: z
      .array(z.string().min(1).max(64))
      .max(16)
      .describe("Matches requests that carry all of these (triattn_tags)."),
    budget: z
      .union([z.int().min(0).max(16777216), z.null()])
      .describe("KV budget of the requests it matches."),
    policy: z
      .union([z.int().min(0).max(7), z.null()])
      .describe("Their policy: an index into SetPolicy's `policies`; null: the policy itself."),
  })
  .meta({
    id: "EngineRule",
    description: "The first rule that matches a request decides; its own budget wins.",
  });

/** Control → engine. */
export const SetPolicy = z
  .strictObject({
    type: z.literal("policy"),
    revision: z.int().min(1),
    policy: PolicyDocument,
    statistics: z
      .union([z.string(), z.null()])
      .describe("Path of the statistics file, if the policy needs one."),
    rules: z.array(EngineRule).max(64).default([]),
    policies: z.array(PolicyDocument).max(8).default([]).describe("Policies that rules name by index."),
  })
  .meta({ id: "SetPolicy" });

export const Watch = z
  .strictObject({
    type: z.literal("watch"),
    seconds: z.int().min(0).max(60).describe("How long to report, unless asked again; 0 ends it."),
    requests: z.boolean().describe("Report the state of requests twice a second."),
    kept: z
      .union([z.string(), z.null()])
      .describe(
        "Request whose rounds KeptReport is to show: its id in events, or where unlike, the client's.",
      ),
  })
  .meta({ id: "Watch", description: "Asks for reports that cost the engine something, for a while." });

export const Rejected = z
  .strictObject({ type: z.literal("rejected"), message: z.string() })
  .meta({ id: "Rejected", description: "The control plane will not serve this engine." });

export const Identify = z
  .strictObject({ type: z.literal("identify") })
  .meta({ id: "Identify", description: "Asks the engine to say hello (again)." });

export const ControlMessage = z
  .discriminatedUnion("type", [SetPolicy, Watch, Rejected, Identify])
  .meta({ id: "ControlMessage" });

export type ModelGeometry = z.infer<typeof ModelGeometry>;
export type Counters = z.infer<typeof Counters>;
export type EngineEvent = z.infer<typeof EngineEvent>;
export type Events = z.infer<typeof Events>;
export type Hello = z.infer<typeof Hello>;
export type EngineInfo = z.infer<typeof EngineInfo>;
export type CacheInfo = z.infer<typeof CacheInfo>;
export type EngineRule = z.infer<typeof EngineRule>;
export type RequestState = z.infer<typeof RequestState>;
export type RequestsReport = z.infer<typeof RequestsReport>;
export type KeptReport = z.infer<typeof KeptReport>;
export type Watch = z.infer<typeof Watch>;
export type SetPolicy = z.infer<typeof SetPolicy>;
export type EngineMessage = z.infer<typeof EngineMessage>;
export type ControlMessage = z.infer<typeof ControlMessage>;
