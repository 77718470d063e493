import type { ComputeEngine } from "@cortex-js/compute-engine";
import { EnvironmentError } from "../../errors.ts";

/** What stands in the last `\boxed{…}`, braces balanced; undefined where there is none. */
export function boxed(text: string): string | undefined {
  const start = Math.max(text.lastIndexOf("\\boxed{"), text.lastIndexOf("\\fbox{"));
  if (start < 0) return undefined;
  const from = text.indexOf("{", start) + 1;
  let depth = 1;
  for (let at = from; at < text.length; at++) {
    if (text[at] === "{" && text[at - 1] !== "\\") depth += 1;
    if (text[at] === "}" && text[at - 1] !== "\\") depth -= 1;
    if (depth === 0) return text.slice(from, at);
  }
  return undefined;
}

/** The answer of a reply: what is boxed, else the last number. */
export function finalAnswer(text: string): string | undefined {
  return boxed(text) ?? text.match(/-?\d[\d,]*(?:\.\d+)?(?:\/\d+)?/g)?.at(-1);
}

/** A whole number as AIME wants it. */
export function aimeAnswer(text: string): number | undefined {
  const digits = finalAnswer(text)?.replaceAll(/[\s,$]|\\!|\\,/g, "");
  return digits !== undefined && /^\d{1,3}$/.test(digits) ? Number(digits) : undefined;
}

/** LaTeX without what changes its looks only. */
export function normalized(latex: string): string {
  return latex
    .trim()
    .replace(/^\$+|\$+$/g, "")
    .replace(/\\(?:left|right|displaystyle|!|,|;|:|quad|qquad)(?![a-zA-Z])/g, "")
    .replaceAll(/\\[dt]frac/g, "\\frac")
    .replaceAll(/\\(?:text|mathrm|mbox|textbf|textit|mathbf)\{([^{}]*)\}/g, "$1")
    .replaceAll(/\^\{?\\circ\}?|\\degree|°/g, "")
    .replaceAll(/\\?%|\\\$/g, "")
    .replaceAll(/(\d),(?=\d{3}(?!\d))/g, "$1")
    .replaceAll("{,}", "")
    .replace(/\.$/, "")
    .replace(/^[a-zA-Z]\w?\s*(?:=|\\in)\s*(?=.)/, "")
    .replaceAll(/\s+/g, " ")
    .trim();
}

let engine: Promise<ComputeEngine> | undefined;

/** The library that compares expressions; loaded when it is first wanted. Throws EnvironmentError. */
export function mathEngine(): Promise<ComputeEngine> {
  engine ??= import("@cortex-js/compute-engine").then(
    ({ ComputeEngine: Engine }) => new Engine(),
    () => {
      throw new EnvironmentError(
        "@cortex-js/compute-engine",
        "missing",
        "the library that compares mathematical expressions: npm install @cortex-js/compute-engine@0.140.0",
      );
    },
  );
  return engine;
}

/** Whether two answers in LaTeX say the same: as text, as numbers, or as expressions. Never throws. */
export function sameAnswer(ce: ComputeEngine, given: string | undefined, wanted: string): boolean {
  if (given === undefined) return false;
  const [a, b] = [normalized(given), normalized(wanted)];
  const bare = (s: string) => s.replaceAll(/[\s{}]/g, "").toLowerCase();
  if (bare(a) === bare(b)) return true;
  // Words are right or wrong as they stand.
  if (a === "" || /^[a-z ]{2,}$/i.test(b)) return false;
  try {
    const [left, right] = [ce.parse(a), ce.parse(b)];
    if (!left.isValid || !right.isValid) return false;
    if (left.isSame(right) || left.isEqual(right) === true) return true;
    if (left.unknowns.length === 0) return false;
    const difference = ce.box(["Expand", ["Subtract", left.json, right.json]]).evaluate();
    return difference.isEqual(0) === true;
  } catch {
    return false;
  }
}
