import type { ApiEvent } from "@triattn/protocol";
import { full, modelName } from "./format.ts";

export const KINDS: readonly ApiEvent["kind"][] = [
  "round",
  "skip",
  "finish",
  "policy",
  "acknowledged",
  "refused",
  "connected",
  "disconnected",
  "gap",
];

/** What happened, in words. */
export function describeEvent({ kind, data }: ApiEvent): string {
  const number = (name: string) => full(Number(data[name] ?? 0));
  const text = (name: string) => String(data[name] ?? "");
  switch (kind) {
    case "round":
      return `evicted ${number("evicted")} of ${number("computed")} tokens, ${number("blocksReclaimed")} blocks back, at step ${number("step")}`;
    case "skip":
      return `round put off: ${text("reason")}, at step ${number("step")}`;
    case "finish":
      return `${text("reason")} after ${number("computed")} tokens, ${number("rounds")} rounds, ${number("evictedTotal")} evicted`;
    case "policy":
      return `revision ${number("revision")}: ${text("name")}, budget ${number("budget")}`;
    case "acknowledged":
      return `revision ${number("revision")} in force from step ${number("step")}`;
    case "refused":
      return `revision ${number("revision")} refused: ${text("message") || text("remedy")}`;
    case "connected":
      return [text("engine"), text("version"), modelName(text("model"))].filter(Boolean).join(" ");
    case "disconnected":
      return text("reason");
    case "gap":
      return `${number("count")} events never arrived`;
  }
}
