import type { ApiEngine } from "@triattn/protocol";
import { compact, full, modelName, percent, rate, toNumber } from "../lib/format.ts";
import { state } from "../state/store.ts";

export function Engines() {
  const engines = state.value?.engines ?? [];
  return (
    <section class="card engines" aria-labelledby="engines-title">
      <header>
        <h2 id="engines-title">Engines</h2>
        <span class="end muted small">{engines.length > 1 && full(engines.length)}</span>
      </header>
      {engines.length === 0 ? (
        <p class="empty">
          {state.value === null
            ? "Nothing is known yet."
            : "No engine has connected to this control plane yet."}
        </p>
      ) : (
        <ul>
          {engines.map((engine) => (
            <li key={engine.engineId}>
              <Engine engine={engine} />
            </li>
          ))}
        </ul>
      )}
    </section>
  );
}

function Engine({ engine: one }: { readonly engine: ApiEngine }) {
  const { engine, model, cache, counters, connected } = one;
  const inForce = state.value?.policy?.revision;
  const behind = connected && inForce !== undefined && one.revision !== inForce;
  const lost = toNumber(one.eventsLost);
  const facts: [string, string][] = [
    ["Model", `${model.layers} layers, ${model.kvHeads} KV heads × ${model.headDim}`],
    ["Cache", `${full(cache.blocks)} blocks × ${cache.blockSize}, ${cache.dtype}`],
    ["Longest", `${full(cache.maxModelLen)} tokens`],
    [
      "Revision",
      one.step === null ? `${one.revision}` : `${one.revision}, from step ${full(toNumber(one.step))}`,
    ],
  ];
  if (counters !== null) {
    facts.push(
      ["Step", full(toNumber(counters.step))],
      ["Now", `${full(counters.running)} running, ${rate(one.tokensPerSecond)} tok/s`],
      [
        "Peak",
        `${compact(counters.peakResidentTokens)} tokens, ${percent(ratio(counters.peakUsedBlocks, cache.blocks))} of the cache`,
      ],
    );
  }
  if (lost > 0) facts.push(["Events lost", full(lost)]);
  return (
    <article class="engine" aria-label={`Engine ${one.engineId}`}>
      <div class="engine-title">
        <h3 class="clip" title={model.name}>
          {modelName(model.name)}
        </h3>
        {!connected && <span class="pill bad">Disconnected</span>}
        {behind && <span class="pill warn">Revision {inForce} on its way</span>}
        {connected && !behind && <span class="pill good">Connected</span>}
      </div>
      <p class="muted small clip">
        {engine.name} {engine.version}, runner {engine.runner}
        {engine.worldSize > 1 && `, ${engine.worldSize} ranks`} · pid {engine.pid} ·{" "}
        <span class="mono">{one.engineId}</span>
      </p>
      <dl class="facts">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      {one.capabilities.length > 0 && (
        <ul class="tags" aria-label="Capabilities">
          {one.capabilities.map((name) => (
            <li key={name} class="tag">
              {name}
            </li>
          ))}
        </ul>
      )}
    </article>
  );
}

const ratio = (part: number, whole: number): number => (whole > 0 ? part / whole : 0);
