import { signal } from "@preact/signals";

const KEY = "triattn.token";

/** Whether the control plane wants a token that this page does not have, or has another. */
export const tokenWanted = signal<"no" | "missing" | "wrong">("no");

/** Kept for this tab only, never longer than it is open. */
let token: string | null = sessionStorage.getItem(KEY);

/** Takes a token from the address (`#token=…`, as a link from the terminal has it) and out of it. */
export function takeTokenFromAddress(): void {
  const [, found] = /^#token=([^/&]+)/.exec(location.hash) ?? [];
  if (found === undefined) return;
  setToken(decodeURIComponent(found));
  history.replaceState(null, "", `${location.pathname}${location.search}#/overview`);
}

export function setToken(value: string): void {
  token = value;
  sessionStorage.setItem(KEY, value);
  tokenWanted.value = "no";
}

export function authorization(): Record<string, string> {
  return token === null ? {} : { authorization: `Bearer ${token}` };
}

/** The control plane answered 401. */
export function refused(): void {
  tokenWanted.value = token === null ? "missing" : "wrong";
  sessionStorage.removeItem(KEY);
  token = null;
}
