import type { ApiPolicy } from "@triattn/protocol";
import { useEffect, useState } from "preact/hooks";
import { api } from "../api/client.ts";
import { dayAndClock, full, toNumber } from "../lib/format.ts";
import { fill, load, toProblem } from "../state/draft.ts";
import { announcement } from "../state/page.ts";
import { state } from "../state/store.ts";
import { useModal } from "../ui/hooks.ts";
import { Back } from "../ui/icons.tsx";

/** Policies that were in force, newest first. */
export function PolicyHistory() {
  const [revisions, setRevisions] = useState<readonly ApiPolicy[]>([]);
  const [failed, setFailed] = useState<string | null>(null);
  const [asked, setAsked] = useState<ApiPolicy | null>(null);
  const current = state.value?.policy?.revision;
  useEffect(() => {
    let gone = false;
    api
      .history()
      .then((answer) => {
        if (gone) return;
        setRevisions(answer.revisions);
        setFailed(null);
      })
      .catch((error: Error) => !gone && setFailed(error.message));
    return () => {
      gone = true;
    };
  }, [current]);
  const rollBack = async ({ revision }: ApiPolicy) => {
    setAsked(null);
    try {
      const answer = await api.rollBack(revision);
      const steps = answer.engines.map(({ step }) => `step ${full(toNumber(step))}`).join(", ");
      announcement.value = `Revision ${revision} is in force again, as ${answer.revision}${steps && `: ${steps}`}`;
      setFailed(null);
      const old = revisions.find((one) => one.revision === revision);
      if (old !== undefined) load({ ...old, revision: answer.revision });
    } catch (error) {
      setFailed(toProblem(error).message);
    }
  };
  return (
    <section class="card history" aria-labelledby="history-title">
      <header>
        <h2 id="history-title">History</h2>
      </header>
      {failed !== null && <p class="problem pad">{failed}</p>}
      <section class="scroll" tabIndex={0} aria-label="Policies that were in force">
        <table class="plain">
          <thead>
            <tr>
              <th scope="col">Rev.</th>
              <th scope="col" class="left">
                Policy
              </th>
              <th scope="col">Budget</th>
              <th scope="col">Rules</th>
              <th scope="col" class="left">
                In force since
              </th>
              <th scope="col">
                <span class="sr-only">What to do</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {revisions.map((one) => (
              <tr key={one.revision}>
                <td>{one.revision}</td>
                <td class="left">{one.policy.name}</td>
                <td>{one.policy.budget === 0 ? "off" : full(one.policy.budget)}</td>
                <td>{one.rules.length}</td>
                <td class="left">{dayAndClock(one.since)}</td>
                <td class="acts">
                  {one.revision === current ? (
                    <span class="pill good">In force</span>
                  ) : (
                    <>
                      <button
                        type="button"
                        class="button quiet"
                        aria-label={`Edit a copy of revision ${one.revision}`}
                        onClick={() => fill(one.policy, one.rules)}
                      >
                        Edit
                      </button>
                      <button
                        type="button"
                        class="button quiet"
                        aria-label={`Roll back to revision ${one.revision}`}
                        onClick={() => setAsked(one)}
                      >
                        <Back size={14} /> Roll back
                      </button>
                    </>
                  )}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </section>
      {asked !== null && (
        <ConfirmRollback
          policy={asked}
          onCancel={() => setAsked(null)}
          onApply={() => void rollBack(asked)}
        />
      )}
    </section>
  );
}

interface ConfirmProps {
  readonly policy: ApiPolicy;
  readonly onCancel: () => void;
  readonly onApply: () => void;
}

function ConfirmRollback({ policy: { revision, policy }, onCancel, onApply }: ConfirmProps) {
  const ref = useModal(onCancel);
  return (
    <dialog ref={ref} aria-labelledby="rollback-title">
      <div class="dialog">
        <h2 id="rollback-title">Roll back to revision {revision}?</h2>
        <p>
          {policy.name}, budget {policy.budget === 0 ? "off" : full(policy.budget)}, comes in force again
          under a new number. Tokens that are evicted stay so.
        </p>
        <div class="actions">
          <button type="button" class="button" onClick={onCancel}>
            Cancel
          </button>
          <button type="button" class="button primary" onClick={onApply}>
            Roll back
          </button>
        </div>
      </div>
    </dialog>
  );
}
