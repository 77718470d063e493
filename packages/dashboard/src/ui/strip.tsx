import type { ComponentChildren } from "preact";
import { compact, full, percent, plural, rate } from "../lib/format.ts";
import { fullKv, omitted, samples, state, telemetry, totals } from "../state/store.ts";
import { isStale } from "./banner.tsx";

interface MetricProps {
  readonly label: string;
  readonly value: string;
  /** Explains the number where it is not plain. */
  readonly title?: string;
  readonly children?: ComponentChildren;
}

function Metric({ label, value, title, children }: MetricProps) {
  return (
    <div class="metric" title={title}>
      <dt>{label}</dt>
      <dd>
        <strong>{value}</strong>
        <span class="sub">{children}</span>
      </dd>
    </div>
  );
}

/** The numbers that are seen from every view. */
export function Strip() {
  const known = state.value !== null;
  const t = totals.value;
  samples.value;
  const ids = (state.value?.engines ?? []).filter((e) => e.connected).map((e) => e.engineId);
  const rates = telemetry.rates(ids);
  const uncompressed = fullKv.value;
  const saved = uncompressed !== null && uncompressed > 0 ? 1 - t.resident / uncompressed : null;
  const use = t.blocks > 0 ? t.usedBlocks / t.blocks : 0;
  const number = (text: string) => (known ? text : "–");
  const stale = isStale();
  return (
    <section aria-label="Overview of all engines" class={stale ? "strip stale" : "strip"}>
      <dl>
        <Metric label="Running" value={number(full(t.running))}>
          {known && `${full(t.finished)} finished`}
        </Metric>
        <Metric label="Waiting" value={number(full(t.waiting))}>
          {known &&
            (t.engines === t.known ? plural(t.engines, "engine") : `${t.engines} of ${t.known} engines`)}
        </Metric>
        <Metric
          label="Resident tokens"
          value={number(compact(t.resident))}
          title="Tokens whose KV is in the cache, and how many there would be without compression"
        >
          {uncompressed !== null && `of ${omitted.value > 0 ? "≥ " : ""}${compact(uncompressed)} full KV`}
          {saved !== null && saved > 0.005 && <em> −{percent(saved)}</em>}
        </Metric>
        <Metric label="Cache use" value={number(percent(use))}>
          <meter
            min={0}
            max={1}
            high={0.9}
            value={use}
            aria-label={`${full(t.usedBlocks)} of ${full(t.blocks)} blocks in use`}
          />
        </Metric>
        <Metric label="Tokens/s" value={number(rate(t.tokensPerSecond))}>
          generated
        </Metric>
        <Metric label="Rounds/s" value={known ? rate(rates.rounds ?? 0) : "–"}>
          {known && `${compact(t.rounds)} in all`}
        </Metric>
        <Metric label="Evicted" value={number(compact(t.evicted))}>
          {rates.evicted !== null && `tokens, ${rate(rates.evicted)}/s`}
        </Metric>
        <Metric label="Preemptions" value={number(full(t.preemptions))}>
          {known && `${compact(t.blocksReclaimed)} blocks back`}
        </Metric>
        <Metric
          label="Stall share"
          value={rates.stall === null ? "–" : percent(rates.stall)}
          title="Share of the last 15 seconds in which running requests waited for planning and rounds"
        >
          of 15 s
        </Metric>
        <PolicyMetric />
      </dl>
    </section>
  );
}

function PolicyMetric() {
  const policy = state.value?.policy;
  if (policy == null) return <Metric label="Policy" value="–" />;
  const controller = state.value?.controller ?? null;
  const { name } = policy.policy;
  const budget = controller?.budget ?? policy.policy.budget;
  const rules = policy.rules.length === 0 ? "" : ` · ${plural(policy.rules.length, "rule")}`;
  const moved =
    controller && `${full(controller.min)} … ${full(controller.max)} by pressure: ${controller.reason}`;
  return (
    <Metric
      label={`Policy ${name}`}
      value={budget === 0 ? "off" : full(budget)}
      title={moved === null ? `Policy ${name}` : `Policy ${name}; its budget is moved between ${moved}`}
    >
      {controller === null ? "budget" : "by pressure"} · rev. {policy.revision}
      {rules}
    </Metric>
  );
}
