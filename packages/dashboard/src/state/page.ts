import { effect, signal } from "@preact/signals";
import { Connection } from "../api/connection.ts";
import { keyOf } from "../lib/requests.ts";
import { formatRoute, parseRoute, type Route } from "../lib/route.ts";
import { carryOn, connection, kept, take } from "./store.ts";

export type Theme = "system" | "light" | "dark";

const THEME_KEY = "triattn.theme";

export const route = signal<Route>(parseRoute(location.hash));
/** This page's clock, in ms, once a second. */
export const now = signal(Date.now());
export const theme = signal<Theme>(readTheme());
/** Whether colours are the dark ones now, whoever chose them. */
export const dark = signal(false);
/** Said once by screen readers. */
export const announcement = signal("");

export const stream = new Connection({
  message: take,
  status: (status) => {
    connection.value = status;
  },
});

export const go = (to: Route): void => {
  location.hash = formatRoute(to);
};

function readTheme(): Theme {
  const stored = localStorage.getItem(THEME_KEY);
  return stored === "light" || stored === "dark" ? stored : "system";
}

/** Starts what the page lives by: the stream, the clock, the address, the colours. */
export function start(): void {
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    dark.value = theme.value === "dark" || (theme.value === "system" && systemDark.matches);
    document.documentElement.dataset.theme = dark.value ? "dark" : "light";
  };
  systemDark.addEventListener("change", paint);
  effect(() => {
    paint();
    if (theme.value === "system") localStorage.removeItem(THEME_KEY);
    else localStorage.setItem(THEME_KEY, theme.value);
  });
  addEventListener("hashchange", () => {
    route.value = parseRoute(location.hash);
  });
  effect(() => {
    const at = route.value;
    const chosen = at.view === "requests" && at.engineId !== undefined && at.request !== undefined;
    const key = chosen ? keyOf(at.engineId ?? "", at.request ?? "") : null;
    const shown = kept.peek();
    if (shown !== null && keyOf(shown.engineId, shown.request) !== key) kept.value = null;
    stream.watch(key);
  });
  setInterval(() => {
    now.value = Date.now();
    carryOn();
  }, 1000);
  // A tab that slept has a stream that nobody answers any more.
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && connection.value.phase === "reconnecting") stream.open();
  });
  stream.open();
}
