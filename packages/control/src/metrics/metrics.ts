import { Counter, Gauge, Registry } from "prom-client";
import type { ControlPlane } from "../control-plane.ts";
import type { Tallies } from "../tallies.ts";
import type { EngineView } from "../types.ts";
import { FROM_COUNTERS, METRICS, type MetricInfo, type MetricName } from "./catalog.ts";

/** Engines that are shown: those connected first, then the newest. Each has some thirty series. */
const MOST_ENGINES = 64;
const LONGEST_LABEL = 128;

type Labels = Record<string, string | number>;

/** Renders what the control plane knows in Prometheus' text format; nothing is kept between two scrapes. */
export class Metrics {
  readonly contentType: string;
  readonly #plane: ControlPlane;
  readonly #tallies: Tallies;
  readonly #registry = new Registry();
  readonly #metrics = new Map<MetricName, Counter | Gauge>();
  #rendering: Promise<string> | undefined;

  constructor(plane: ControlPlane, tallies: Tallies) {
    this.#plane = plane;
    this.#tallies = tallies;
    this.contentType = this.#registry.contentType;
    for (const [name, info] of Object.entries(METRICS) as [MetricName, MetricInfo][]) {
      const labelNames = [...(info.own ? [] : ["engine_id", "model"]), ...(info.labels ?? [])];
      const options = { name, help: info.help, labelNames, registers: [this.#registry] };
      this.#metrics.set(name, info.type === "counter" ? new Counter(options) : new Gauge(options));
    }
  }

  /** Two scrapes at once are one: a series must not be counted twice. */
  text(): Promise<string> {
    this.#rendering ??= this.#render().finally(() => {
      this.#rendering = undefined;
    });
    return this.#rendering;
  }

  async #render(): Promise<string> {
    for (const metric of this.#metrics.values()) metric.reset();
    this.#setOwn();
    const engines = this.#plane.engines().toReversed();
    const shown = [...engines.filter((e) => e.connected), ...engines.filter((e) => !e.connected)];
    for (const engine of shown.slice(0, MOST_ENGINES)) this.#setEngine(engine);
    return this.#registry.metrics();
  }

  #set(name: MetricName, value: number | bigint, labels: Labels = {}): void {
    const metric = this.#metrics.get(name);
    // Beyond 2⁵³ a float is as near as Prometheus' own numbers come.
    if (metric instanceof Counter) metric.inc(labels, Number(value));
    else metric?.set(labels, Number(value));
  }

  #setEngine(engine: EngineView): void {
    const { hello, counters } = engine;
    const labels = { engine_id: clip(engine.engineId), model: clip(hello.model.name) };
    this.#set("triattn:engine_up", Number(engine.connected), labels);
    // What an engine that is gone said last is not how it is.
    if (!engine.connected) return;
    const { name, version, runner, worldSize } = hello.engine;
    const info = { engine: name, version: clip(version), runner: clip(runner), world_size: worldSize };
    this.#set("triattn:engine_info", 1, { ...labels, ...info });
    this.#set("triattn:engine_policy_revision", engine.revision, labels);
    this.#set("triattn:events_lost_total", engine.eventsLost, labels);
    this.#set("triattn:kv_block_size_tokens", hello.cache.blockSize, labels);
    const skipped = this.#tallies.skipped.get(engine.engineId) ?? { no_free_block: 0 };
    for (const [reason, count] of Object.entries(skipped)) {
      this.#set("triattn:compaction_skipped_total", count, { ...labels, reason });
    }
    if (counters === undefined) return;
    for (const [metric, counter] of Object.entries(FROM_COUNTERS)) {
      this.#set(metric as MetricName, counters[counter], labels);
    }
    this.#set("triattn:round_seconds_total", counters.planSeconds, { ...labels, phase: "plan" });
    this.#set("triattn:round_seconds_total", counters.roundSeconds, { ...labels, phase: "compact" });
    this.#set("triattn:kv_blocks", counters.usedBlocks, { ...labels, state: "used" });
    this.#set("triattn:kv_blocks", Math.max(0, hello.cache.blocks - counters.usedBlocks), {
      ...labels,
      state: "free",
    });
  }

  #setOwn(): void {
    const { policy: current } = this.#plane;
    const { link } = this.#plane.counters();
    if (current !== undefined) {
      const { policy, revision, rules } = current;
      this.#set("triattn:policy_info", 1, { policy: policy.name, selection: policy.selection, revision });
      this.#set("triattn:policy_budget_tokens", policy.budget);
      this.#set("triattn:policy_interval_tokens", policy.interval);
      for (const { name, budget } of rules) {
        if (budget !== undefined) this.#set("triattn:rule_budget_tokens", budget, { rule: name });
      }
    }
    this.#set("triattn:policies_replaced_total", this.#tallies.policiesReplaced);
    this.#set("triattn:policies_refused_total", this.#tallies.policiesRefused);
    this.#set("triattn:engine_connections_total", this.#tallies.enginesConnected);
    this.#set("triattn:link_frames_received_total", link.framesReceived);
    for (const [reason, count] of Object.entries(link.framesDropped)) {
      this.#set("triattn:link_frames_dropped_total", count, { reason });
    }
    this.#set("triattn:events_received_total", link.eventsReceived);
    this.#set("triattn:consumer_items_dropped_total", link.itemsOverflowed);
    const { user, system } = process.cpuUsage();
    this.#set("process_cpu_seconds_total", (user + system) / 1e6);
    this.#set("process_resident_memory_bytes", process.memoryUsage.rss());
    this.#set("process_start_time_seconds", Math.round(Date.now() / 1000 - process.uptime()));
  }
}

const clip = (text: string): string =>
  text.length > LONGEST_LABEL ? `${text.slice(0, LONGEST_LABEL - 1)}…` : text;
