import { constants } from "node:os";

/** Signals that end a command in order, each with 128 + its number as exit code. */
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
/** A terminal's Ctrl-C may arrive twice: from the terminal itself, and from the tool that started this one. */
const SAME_MS = 300;

/** Exit code of a command ended by a signal. */
export const signalCode = (signal: NodeJS.Signals): number => 128 + constants.signals[signal];

/**
 * Calls `first` at the first signal, `again` at every later one. Returns how to stop listening.
 */
export function onSignals(first: (signal: NodeJS.Signals) => void, again: () => void): () => void {
  let since: number | undefined;
  const listener = (signal: NodeJS.Signals) => {
    if (since === undefined) {
      since = performance.now();
      first(signal);
    } else if (performance.now() - since > SAME_MS) again();
  };
  for (const signal of SIGNALS) process.on(signal, listener);
  return () => {
    for (const signal of SIGNALS) process.off(signal, listener);
  };
}
