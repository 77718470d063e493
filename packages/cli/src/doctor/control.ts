import type { ApiEngine, ApiState } from "@triattn/protocol";
import { ControlClient } from "../http/client.ts";
import { version } from "../version.ts";
import { bad, type Finding, ok, warn } from "./finding.ts";

/** A control plane that runs, and its engines. */
export async function control(url: string, token: string | undefined): Promise<Finding[]> {
  const client = new ControlClient(url, token);
  return controlFindings(client.url, await client.state());
}

export function controlFindings(url: string, { version: theirs, policy, engines }: ApiState): Finding[] {
  const own = `${url}, triattn ${theirs}`;
  const findings: Finding[] = [
    theirs === version
      ? ok("control", own)
      : warn("control", `${own}, and this is ${version}`, "use the same release on both sides"),
  ];
  if (policy === null)
    findings.push(warn("control", "no policy is in force", "give it one: PUT /api/policy"));
  if (engines.every(({ connected }) => !connected)) {
    findings.push(
      bad("engines", "none is connected", "see the engine's log: it must have loaded the plugin"),
    );
  }
  return [
    ...findings,
    ...engines.flatMap((engine) => engineFindings(engine, policy?.revision ?? 0, policy?.policy.budget ?? 0)),
  ];
}

function engineFindings(engine: ApiEngine, revision: number, budget: number): Finding[] {
  const { engineId, connected, counters, eventsLost } = engine;
  if (!connected)
    return [warn("engines", `${engineId} is gone`, "start it again, if it was not meant to end")];
  const name = `${engineId}, ${engine.engine.name} ${engine.engine.version}, ${engine.model.name}`;
  const findings: Finding[] = [];
  if (engine.revision < revision) {
    findings.push(
      warn(
        "engines",
        `${engineId} uses revision ${engine.revision}, in force is ${revision}`,
        "see its log for a refusal",
      ),
    );
  }
  if (Number(eventsLost) > 0) {
    findings.push(
      warn("engines", `${engineId} lost ${eventsLost} events`, "the control plane's machine is too busy"),
    );
  }
  if (counters !== null && budget > 0) {
    const each = counters.running === 0 ? 0 : counters.residentTokens / counters.running;
    // Twice the budget on average is more than any interval explains.
    if (Number(counters.rounds) === 0 && each > 2 * budget) {
      findings.push(
        bad(
          "engines",
          `${engineId}: ${Math.round(each)} resident tokens a request and not one round at budget ${budget}`,
          "compression does not fire: see its log, and whether rules or requests set budget 0",
        ),
      );
    }
    if (Number(counters.roundsSkipped) > 0) {
      const fix = "too few free blocks to copy shared ones to: a smaller budget, or fewer requests at once";
      findings.push(warn("engines", `${engineId} put ${counters.roundsSkipped} rounds off`, fix));
    }
  }
  return findings.length > 0 ? findings : [ok("engines", name)];
}
