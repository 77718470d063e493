import { setTimeout as sleep } from "node:timers/promises";
import type { ApiPolicyRequest } from "@triattn/protocol";
import type { ControlClient } from "../http/client.ts";
import { onSignals, signalCode } from "../serve/signals.ts";
import { follow, press, split } from "./keys.ts";
import { createModel, Intake, type Proposal } from "./model.ts";
import { Screen } from "./screen.ts";
import { render, requestLines, type Style } from "./view.ts";

const DRAW_MS = 100;
const RETRY_MS = 1_000;
const PREVIEW_MS = 250;

const text = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Shows a control plane until it is told to quit; the exit code. */
export async function top(client: ControlClient, style: Style): Promise<number> {
  const model = createModel(client.url);
  const intake = new Intake(model);
  const stop = new AbortController();
  let code = 0;
  let drawing: NodeJS.Timeout | undefined;
  const draw = () => {
    drawing ??= setTimeout(() => {
      drawing = undefined;
      follow(model, requestLines(model, screen.size));
      screen.draw(render(model, screen.size, style));
    }, DRAW_MS / 4);
  };
  const budget = new BudgetKeys(client, model, draw);
  const onKeys = (bytes: string) => {
    for (const key of split(bytes)) {
      const ask = press(model, key, requestLines(model, screen.size));
      if (ask === "quit") return stop.abort();
      if (ask === "suspend") screen.suspend();
      else if (ask === "preview") budget.preview();
      else if (ask === "apply") void budget.apply();
    }
    draw();
  };
  const screen = new Screen(process.stdin, process.stdout, onKeys, draw);
  const unlisten = onSignals(
    (signal) => {
      code = signalCode(signal);
      stop.abort();
    },
    () => process.exit(code),
  );
  // An error that nobody foresaw ends the process by itself; its text belongs on the user's own screen.
  process.once("uncaughtExceptionMonitor", () => screen.leave());
  screen.enter();
  draw();
  try {
    while (!stop.signal.aborted) {
      try {
        for await (const message of client.stream(stop.signal)) {
          model.trouble = undefined;
          if (model.paused) continue;
          intake.take(message, performance.now());
          draw();
        }
        model.trouble = "the control plane has ended; trying again";
      } catch (error) {
        if (stop.signal.aborted) break;
        model.trouble = `${text(error)}; trying again`;
      }
      draw();
      await sleep(RETRY_MS, undefined, { signal: stop.signal }).catch(() => {});
    }
    return code;
  } finally {
    clearTimeout(drawing);
    unlisten();
    screen.leave();
  }
}

/** A budget from its proposal to the engines. */
class BudgetKeys {
  readonly #client: ControlClient;
  readonly #model: ReturnType<typeof createModel>;
  readonly #draw: () => void;
  #timer: NodeJS.Timeout | undefined;

  constructor(client: ControlClient, model: ReturnType<typeof createModel>, draw: () => void) {
    this.#client = client;
    this.#model = model;
    this.#draw = draw;
  }

  /** Asks what a proposal would do, once the keys have come to rest. */
  preview(): void {
    clearTimeout(this.#timer);
    const asked = this.#model.proposal;
    this.#timer = setTimeout(() => void (asked && this.#ask(asked)), PREVIEW_MS);
    this.#timer.unref();
  }

  async #ask(asked: Proposal): Promise<void> {
    let found: Partial<Proposal>;
    try {
      found = { preview: await this.#client.preview(this.#request(asked)) };
    } catch (error) {
      found = { error: text(error) };
    }
    if (this.#model.proposal !== asked) return;
    this.#model.proposal = { ...asked, ...found };
    this.#draw();
  }

  async apply(): Promise<void> {
    const { proposal } = this.#model;
    if (proposal === undefined || proposal.sent) return;
    clearTimeout(this.#timer);
    this.#model.proposal = { ...proposal, sent: true };
    try {
      const { revision, engines } = await this.#client.setPolicy(this.#request(proposal));
      const steps = engines.map(({ engineId, step }) => `${engineId} at step ${step}`).join(", ");
      this.#model.notice = `budget ${proposal.budget} in force as revision ${revision}${steps === "" ? "" : `: ${steps}`}`;
    } catch (error) {
      this.#model.notice = `not changed: ${text(error)}`;
    }
    this.#model.proposal = undefined;
    this.#draw();
  }

  #request({ budget }: Proposal): ApiPolicyRequest {
    const policy = this.#model.state?.policy?.policy;
    if (policy === undefined) throw new Error("no policy is in force yet");
    return { policy: { ...policy, budget } };
  }
}
