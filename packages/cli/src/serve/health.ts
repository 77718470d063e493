import { setTimeout as sleep } from "node:timers/promises";

const INTERVAL_MS = 250;

/** Resolves when the server answers at `url`/health; rejects only with the signal's reason. */
export async function waitUntilHealthy(url: string, signal: AbortSignal): Promise<void> {
  for (;;) {
    signal.throwIfAborted();
    try {
      const timeout = AbortSignal.timeout(5_000);
      const response = await fetch(`${url}/health`, { signal: AbortSignal.any([signal, timeout]) });
      await response.body?.cancel();
      if (response.ok) return;
    } catch {
      // Not up yet.
    }
    await sleep(INTERVAL_MS, undefined, { signal }).catch(() => {});
  }
}
