import { SORTS, sorted, type TopModel } from "./model.ts";

/** What a key asks for, beyond a change of the model. */
export type Ask = "quit" | "suspend" | "redraw" | "preview" | "apply" | undefined;

/** Keys of what a terminal sent in one go; several typed fast arrive together. */
export function split(bytes: string): string[] {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: keys begin with them.
  return bytes.match(/\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Z]|[\s\S]/g) ?? [];
}

const NAMES: Readonly<Record<string, string>> = {
  "\x1b[A": "up",
  "\x1bOA": "up",
  k: "up",
  "\x1b[B": "down",
  "\x1bOB": "down",
  j: "down",
  "\x1b[5~": "pageUp",
  "\x1b[6~": "pageDown",
  "\x1b[H": "home",
  "\x1b[1~": "home",
  "\x1b[F": "end",
  "\x1b[4~": "end",
  "\x1b": "escape",
  "\r": "enter",
  "\n": "enter",
  "\t": "tab",
  "\x03": "quit",
  q: "quit",
  "\x1a": "suspend",
  "=": "+",
  _: "-",
  h: "?",
  y: "enter",
  n: "escape",
};

/** Changes the model as a key says. `lines` is how many requests are shown. */
export function press(model: TopModel, key: string, lines: number): Ask {
  const name = NAMES[key] ?? key;
  model.notice = undefined;
  if (key === "\x03") return "quit";
  if (name === "suspend") return "suspend";
  if (model.help) {
    model.help = false;
    return "redraw";
  }
  if (name === "quit") return "quit";
  if (name === "+" || name === "-") return propose(model, name === "+" ? 1 : -1);
  if (model.proposal !== undefined) {
    if (name === "escape" && !model.proposal.sent) model.proposal = undefined;
    return name === "enter" && !model.proposal?.sent ? "apply" : "redraw";
  }
  switch (name) {
    case "s":
      model.sort = SORTS[(SORTS.indexOf(model.sort) + 1) % SORTS.length] ?? "length";
      return "redraw";
    case "r":
      model.reversed = !model.reversed;
      return "redraw";
    case " ":
      model.paused = !model.paused;
      return "redraw";
    case "?":
      model.help = true;
      return "redraw";
    case "tab": {
      const ids = model.state?.engines.map(({ engineId }) => engineId) ?? [];
      model.engineId = ids[(ids.indexOf(model.engineId ?? "") + 1) % Math.max(1, ids.length)];
      model.request = undefined;
      model.scroll = 0;
      return "redraw";
    }
    default:
      return move(model, name, lines) ? "redraw" : undefined;
  }
}

function propose(model: TopModel, direction: number): Ask {
  const policy = model.state?.policy?.policy;
  if (policy === undefined || model.proposal?.sent) return "redraw";
  const from = model.proposal?.budget ?? policy.budget;
  const pinned = policy.pin.sinks + policy.pin.window;
  let budget = from + direction * policy.interval;
  // Between what is pinned and nothing there is no budget.
  if (budget < pinned) budget = direction > 0 ? Math.ceil(pinned / policy.interval) * policy.interval : 0;
  model.proposal = { budget, preview: undefined, error: undefined, sent: false };
  return "preview";
}

function move(model: TopModel, name: string, lines: number): boolean {
  const list = sorted(model);
  const at = list.findIndex(({ request }) => request === model.request);
  const targets: Readonly<Record<string, number>> = {
    up: at < 0 ? 0 : at - 1,
    down: at + 1,
    pageUp: at - lines,
    pageDown: at + lines,
    home: 0,
    end: list.length - 1,
  };
  const target = targets[name];
  if (target === undefined || list.length === 0) return false;
  const next = Math.max(0, Math.min(list.length - 1, target));
  model.request = list[next]?.request;
  follow(model, lines);
  return true;
}

/** Keeps the chosen request, wherever the order has put it, and the page inside the list. */
export function follow(model: TopModel, lines: number): void {
  const list = sorted(model);
  const at = list.findIndex(({ request }) => request === model.request);
  if (at >= 0) {
    if (at < model.scroll) model.scroll = at;
    if (at >= model.scroll + lines) model.scroll = at - lines + 1;
  }
  model.scroll = Math.max(0, Math.min(model.scroll, list.length - lines));
}
