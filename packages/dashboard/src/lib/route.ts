/** What the page shows, as the address says it. */
export type Route =
  | { readonly view: "overview" | "policy" | "events" }
  | { readonly view: "requests"; readonly engineId?: string; readonly request?: string };

/** Reads `#/requests/ENGINE/REQUEST` and the like; what is not known is the overview. */
export function parseRoute(hash: string): Route {
  const [view, engineId, request] = hash.replace(/^#\/?/, "").split("/").map(decode);
  if (view === "policy" || view === "events") return { view };
  if (view !== "requests") return { view: "overview" };
  return engineId && request ? { view, engineId, request } : { view };
}

export function formatRoute(route: Route): string {
  if (route.view !== "requests" || route.engineId === undefined || route.request === undefined) {
    return `#/${route.view}`;
  }
  return `#/requests/${encodeURIComponent(route.engineId)}/${encodeURIComponent(route.request)}`;
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
