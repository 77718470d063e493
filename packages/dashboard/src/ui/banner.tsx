import { clock, seconds } from "../lib/format.ts";
import { now, stream } from "../state/page.ts";
import { connection, received, STALE_MS, state } from "../state/store.ts";

/** Says honestly when what is shown is not what is now. */
export function Banner() {
  const { phase, reason, retryAt } = connection.value;
  const lost = phase === "reconnecting";
  const engines = state.value?.engines ?? [];
  const gone = engines.filter(({ connected }) => !connected);
  return (
    <div>
      {lost && (
        <div class="banner">
          <span role="status">
            Connection lost: {reason ?? "trying again"}.{" "}
            {received.value > 0 && `What is shown is from ${clock(received.value)}.`}
          </span>
          {/* Counted down for the eye only. */}
          <span aria-hidden="true">
            {retryAt === null
              ? "Connecting …"
              : `Next try in ${seconds(Math.max(0, Math.ceil((retryAt - now.value) / 1000)))}.`}
          </span>
          <button type="button" class="button" onClick={() => stream.open()}>
            Try now
          </button>
        </div>
      )}
      {!lost && gone.length > 0 && gone.length === engines.length && (
        <div class="banner" role="status">
          {gone.length === 1 ? "The engine is" : "All engines are"} disconnected: it goes on with the policy
          that it has, and its numbers are the last that it sent.
        </div>
      )}
    </div>
  );
}

/** Whether what is shown is old. */
export function isStale(): boolean {
  const { phase } = connection.value;
  if (phase === "live") return false;
  return received.value > 0 && now.value - received.value > STALE_MS;
}
