import type { Counters } from "@triattn/protocol";

export interface MetricInfo {
  readonly type: "counter" | "gauge";
  readonly help: string;
  /** Labels beside `engine_id` and `model`, which every metric of an engine has. */
  readonly labels?: readonly string[];
  /** Of the control plane itself: without `engine_id` and `model`. */
  readonly own?: boolean;
}

/** Every metric, as Prometheus sees it. Dashboards and documents are tested against this table. */
export const METRICS = {
  "triattn:engine_up": { type: "gauge", help: "Whether the engine is connected." },
  "triattn:engine_info": {
    type: "gauge",
    help: "What the engine is; always 1.",
    labels: ["engine", "version", "runner", "world_size"],
  },
  "triattn:engine_policy_revision": { type: "gauge", help: "Policy revision that the engine uses." },
  "triattn:compactions_total": { type: "counter", help: "Rounds: compactions of one request each." },
  "triattn:compaction_batches_total": {
    type: "counter",
    help: "Scheduler steps in which at least one request was compacted.",
  },
  "triattn:compaction_skipped_total": {
    type: "counter",
    help: "Rounds put off, as the engine's events tell it: no_free_block, no_statistics, other.",
    labels: ["reason"],
  },
  "triattn:tokens_evicted_total": { type: "counter", help: "Tokens evicted from the KV cache." },
  "triattn:blocks_reclaimed_total": { type: "counter", help: "Blocks given back to the pool by rounds." },
  "triattn:tokens_generated_total": { type: "counter", help: "Tokens generated." },
  "triattn:requests_finished_total": { type: "counter", help: "Requests that ended." },
  "triattn:preemptions_total": { type: "counter", help: "Requests preempted for lack of blocks." },
  "triattn:round_seconds_total": {
    type: "counter",
    help: "Time of rounds by phase: plan (the scheduler's), compact (the workers', where measured).",
    labels: ["phase"],
  },
  "triattn:batch_stall_seconds_total": {
    type: "counter",
    help: "Time that running requests waited for rounds.",
  },
  "triattn:requests_running": { type: "gauge", help: "Requests that run." },
  "triattn:requests_waiting": { type: "gauge", help: "Requests that wait." },
  "triattn:kv_tokens_resident": { type: "gauge", help: "Tokens in the KV cache, over all running requests." },
  "triattn:kv_tokens_resident_peak": {
    type: "gauge",
    help: "Most tokens that were in the KV cache at once.",
  },
  "triattn:kv_blocks": {
    type: "gauge",
    help: "Blocks of the KV cache by state: used, free.",
    labels: ["state"],
  },
  "triattn:kv_block_size_tokens": { type: "gauge", help: "Tokens of a block." },
  "triattn:events_dropped_total": { type: "counter", help: "Events that the engine dropped before sending." },
  "triattn:events_lost_total": {
    type: "counter",
    help: "Events that the engine sent and that never arrived.",
  },
  "triattn:policy_info": {
    type: "gauge",
    help: "The policy in force; always 1.",
    labels: ["policy", "selection", "revision"],
    own: true,
  },
  "triattn:policy_budget_tokens": { type: "gauge", help: "KV budget of the policy in force.", own: true },
  "triattn:policy_interval_tokens": { type: "gauge", help: "Interval of the policy in force.", own: true },
  "triattn:rule_budget_tokens": {
    type: "gauge",
    help: "KV budget of each rule that has one.",
    labels: ["rule"],
    own: true,
  },
  "triattn:policies_replaced_total": { type: "counter", help: "Policies put in force.", own: true },
  "triattn:policies_refused_total": { type: "counter", help: "Policies that an engine refused.", own: true },
  "triattn:engine_connections_total": { type: "counter", help: "Times that an engine connected.", own: true },
  "triattn:link_frames_received_total": {
    type: "counter",
    help: "Frames from engines, good or bad.",
    own: true,
  },
  "triattn:link_frames_dropped_total": {
    type: "counter",
    help: "Frames dropped, by reason.",
    labels: ["reason"],
    own: true,
  },
  "triattn:events_received_total": { type: "counter", help: "Events of engines that arrived.", own: true },
  "triattn:consumer_items_dropped_total": {
    type: "counter",
    help: "Items dropped for slow consumers of events in this process.",
    own: true,
  },
  process_cpu_seconds_total: { type: "counter", help: "Processor time of the control plane.", own: true },
  process_resident_memory_bytes: { type: "gauge", help: "Memory of the control plane.", own: true },
  process_start_time_seconds: { type: "gauge", help: "When the control plane started.", own: true },
} as const satisfies Record<string, MetricInfo>;

export type MetricName = keyof typeof METRICS;

/** Which of an engine's counters a metric is, where it is one as it stands. */
export const FROM_COUNTERS = {
  "triattn:compactions_total": "rounds",
  "triattn:compaction_batches_total": "roundBatches",
  "triattn:tokens_evicted_total": "tokensEvicted",
  "triattn:blocks_reclaimed_total": "blocksReclaimed",
  "triattn:tokens_generated_total": "tokensGenerated",
  "triattn:requests_finished_total": "requestsFinished",
  "triattn:preemptions_total": "preemptions",
  "triattn:batch_stall_seconds_total": "stallSeconds",
  "triattn:requests_running": "running",
  "triattn:requests_waiting": "waiting",
  "triattn:kv_tokens_resident": "residentTokens",
  "triattn:kv_tokens_resident_peak": "peakResidentTokens",
  "triattn:events_dropped_total": "eventsDropped",
} as const satisfies Partial<Record<MetricName, keyof Counters>>;
