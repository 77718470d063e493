import type { ApiPreview } from "@triattn/protocol";
import { compact, full, plural } from "../lib/format.ts";
import { useModal } from "../ui/hooks.ts";

interface ConfirmProps {
  readonly preview: ApiPreview;
  readonly onCancel: () => void;
  readonly onApply: () => void;
}

const MOST_CHANGES = 6;

/** Asked before a policy is put in force: what is evicted does not come back. */
export function Confirm({ preview, onCancel, onApply }: ConfirmProps) {
  const ref = useModal(onCancel);
  const sum = (pick: (engine: ApiPreview["engines"][number]) => number) =>
    preview.engines.reduce((total, engine) => total + pick(engine), 0);
  const evicted = sum((e) => e.tokensEvicted);
  const { changes } = preview;
  return (
    <dialog ref={ref} aria-labelledby="confirm-title">
      <div class="dialog">
        <h2 id="confirm-title">Put this policy in force?</h2>
        {changes.length > 0 && (
          <ul class="change-list">
            {changes.slice(0, MOST_CHANGES).map(({ path, from, to }) => (
              <li key={path}>
                <code>{path}</code> <span class="muted">{short(from)} →</span> {short(to)}
              </li>
            ))}
            {changes.length > MOST_CHANGES && <li class="muted">and {changes.length - MOST_CHANGES} more</li>}
          </ul>
        )}
        <p>
          {evicted === 0 ? (
            "No request that runs now is compressed at once."
          ) : (
            <>
              About <b>{compact(evicted)} tokens</b> of{" "}
              {plural(
                sum((e) => e.requestsCompressed),
                "request",
              )}{" "}
              are evicted at once. They do not come back when it is rolled back.
            </>
          )}{" "}
          It takes effect on {full(preview.engines.length)}{" "}
          {preview.engines.length === 1 ? "engine" : "engines"}, each at one scheduler step.
        </p>
        <div class="actions">
          <button type="button" class="button" onClick={onCancel}>
            Cancel
          </button>
          <button type="button" class="button primary" onClick={onApply}>
            Put in force
          </button>
        </div>
      </div>
    </dialog>
  );
}

function short(value: unknown): string {
  const text = value === undefined ? "–" : JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}
