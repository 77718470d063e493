import { encode, PROTOCOL_VERSION } from "@triattn/protocol";
import { type Chance, mutate } from "./random.ts";

const hello = {
  type: "hello",
  protocol: PROTOCOL_VERSION,
  engineId: "hostile",
  engine: { name: "vllm", version: "0", runner: "v1", pid: 1, worldSize: 1 },
  model: {
    name: "m",
    fingerprint: "f",
    weights: null,
    layers: 1,
    queryHeads: 1,
    kvHeads: 1,
    headDim: 2,
    rotary: null,
  },
  cache: { blockSize: 32, blocks: 10, maxModelLen: 1000, dtype: "float32" },
  capabilities: ["a"],
  revision: 0,
  nextEvent: 0,
};

const round = {
  kind: "round",
  step: 1,
  request: "r",
  revision: 1,
  budget: 512,
  computed: 700,
  evicted: 128,
  evictedTotal: 188,
  blocksReclaimed: 4,
  blocksCopied: 0,
};

const counters = Object.fromEntries(
  [
    ...["step", "running", "waiting", "residentTokens", "peakResidentTokens", "usedBlocks", "peakUsedBlocks"],
    ...["tokensGenerated", "requestsFinished", "preemptions", "rounds", "tokensEvicted", "blocksReclaimed"],
    ...["roundsSkipped", "roundBatches", "planSeconds", "roundSeconds", "stallSeconds", "eventsDropped"],
  ].map((name) => [name, 1]),
);

const requestState = {
  request: "r",
  state: "running",
  priority: 0,
  tags: ["a"],
  rule: null,
  prompt: 1,
  computed: 2,
  resident: 2,
  budget: 512,
  evictedTotal: 0,
  rounds: 0,
};

/** One of each message that an engine sends. */
export const messages: readonly object[] = [
  hello,
  { type: "ack", revision: 1, step: 1 },
  { type: "refusal", revision: 1, field: "f", value: "v", remedy: "r", message: "m" },
  {
    type: "events",
    first: 0,
    events: [
      round,
      { kind: "skip", step: 1, request: "r", reason: "why" },
      { kind: "finish", step: 1, request: "r", reason: "aborted", computed: 1, evictedTotal: 0, rounds: 0 },
    ],
  },
  { type: "counters", counters },
  { type: "requests", step: 1, requests: [requestState], omitted: 0 },
  {
    type: "kept",
    request: "r",
    step: 1,
    computed: 8,
    resident: 4,
    layers: 1,
    kvHeads: 1,
    bins: 2,
    counts: new Uint8Array(4),
  },
  { type: "heartbeat", revision: 1, nextEvent: 0 },
  { type: "bye", reason: "r" },
];

const encoded = messages.map((message) => encode(message));

/** MessagePack that promises more than follows, or nests without end. */
function malicious(chance: Chance): Uint8Array {
  const heads = [
    [0xdd, 0xff, 0xff, 0xff, 0xff],
    [0xdf, 0xff, 0xff, 0xff, 0xff],
    [0xdb, 0x7f, 0xff, 0xff, 0xff],
    [0xc6, 0x7f, 0xff, 0xff, 0xff],
    [0xc9, 0x00, 0x10, 0x00, 0x00, 0x01],
    [0xd6, 0xff, 0x00, 0x00, 0x00, 0x00],
    [0xc1],
  ];
  if (chance.next() < 0.5) return Uint8Array.from(chance.pick(heads));
  return new Uint8Array(chance.below(20_000)).fill(chance.pick([0x91, 0x81, 0xa1, 0xdc]));
}

/** Bytes of a message changed, cut, doubled, or put in. */
function damage(chance: Chance, frame: Uint8Array): Uint8Array {
  const copy = Uint8Array.from(frame);
  const how = chance.below(4);
  const at = chance.below(copy.length);
  if (how === 0) return copy.subarray(0, at);
  if (how === 1) return Uint8Array.from([...copy, ...copy.subarray(at)]);
  if (how === 2) return Uint8Array.from([...copy.subarray(0, at), ...chance.bytes(8), ...copy.subarray(at)]);
  for (let i = 0; i <= chance.below(4); i++) copy[chance.below(copy.length)] = chance.below(256);
  return copy;
}

/** What a broken or hostile engine may send: the parts of one message. */
export function hostileFrames(chance: Chance): Uint8Array[] {
  const kind = chance.below(100);
  if (kind < 10) return [chance.bytes(chance.below(200))];
  if (kind < 15) return [malicious(chance)];
  if (kind < 17) return Array.from({ length: chance.below(4) + 1 }, () => chance.bytes(chance.below(20)));
  if (kind < 55) return [damage(chance, chance.pick(encoded))];
  if (kind < 95) {
    try {
      return [encode(mutate(chance, chance.pick(messages)))];
    } catch {
      // What the encoder itself refuses is not sent.
      return [new Uint8Array()];
    }
  }
  // Well formed, but out of any order.
  return [chance.pick(encoded)];
}
