import { useRef } from "preact/hooks";
import { lineOfPath, parseJson, tokens } from "../lib/json.ts";
import { type Problem, pretty, problem, statistics, text } from "../state/draft.ts";

/** The line of the text that a problem is in; null: none is known. */
export function lineOfProblem({ line, field }: Problem): number | null {
  if (line !== null) return line;
  if (field === null) return null;
  return lineOfPath(text.value, field.replace(/^policy\./, "")) ?? null;
}

/** The document as coloured JSON, with numbered lines. */
export function Editor() {
  const layer = useRef<HTMLPreElement>(null);
  const gutter = useRef<HTMLDivElement>(null);
  const value = text.value;
  const lines = value.split("\n").length;
  const wrong = problem.value === null ? null : lineOfProblem(problem.value);
  const onScroll = (event: Event) => {
    const { scrollTop, scrollLeft } = event.currentTarget as HTMLElement;
    if (layer.current !== null) {
      layer.current.scrollTop = scrollTop;
      layer.current.scrollLeft = scrollLeft;
    }
    if (gutter.current !== null) gutter.current.scrollTop = scrollTop;
  };
  return (
    <div class="code">
      <div ref={gutter} class="gutter" aria-hidden="true">
        {Array.from({ length: lines }, (_, i) => (
          <span key={i} class={i + 1 === wrong ? "wrong" : undefined}>
            {i + 1}
          </span>
        ))}
      </div>
      <div class="code-area">
        <pre ref={layer} aria-hidden="true">
          {tokens(value).map(({ kind, text: piece }, i) => (
            <span key={i} class={`t-${kind}`}>
              {piece}
            </span>
          ))}
          {"\n"}
        </pre>
        <textarea
          aria-label="Policy document, JSON"
          aria-describedby="policy-problem"
          aria-invalid={problem.value !== null}
          spellcheck={false}
          autocapitalize="off"
          autocomplete="off"
          wrap="off"
          value={value}
          onInput={(event) => {
            text.value = event.currentTarget.value;
          }}
          onScroll={onScroll}
        />
      </div>
    </div>
  );
}

/** The two numbers that are changed most, and the statistics. */
export function Numbers() {
  const parsed = parseJson(text.value);
  const document = "value" in parsed && isObject(parsed.value) ? parsed.value : null;
  const set = (name: "budget" | "interval", value: string) => {
    if (document === null || !/^\d+$/.test(value)) return;
    text.value = pretty({ ...document, [name]: Number(value) });
  };
  return (
    <div class="numbers">
      {(["budget", "interval"] as const).map((name) => (
        <label key={name} class="field">
          <span>{name === "budget" ? "KV budget, tokens (0: off)" : "Interval, tokens"}</span>
          <input
            class="input"
            type="number"
            min={name === "budget" ? 0 : 1}
            step={1}
            disabled={document === null}
            value={document === null ? "" : String(document[name] ?? "")}
            onInput={(event) => set(name, event.currentTarget.value)}
          />
        </label>
      ))}
      <label class="field">
        <span>Statistics, name or path</span>
        <input
          class="input"
          placeholder="as before"
          value={statistics.value}
          onInput={(event) => {
            statistics.value = event.currentTarget.value.trim();
          }}
        />
      </label>
    </div>
  );
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
