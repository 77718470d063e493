import { PolicyRefused, PolicyUnacknowledged } from "./errors.ts";
import type { PolicyResult } from "./types.ts";

type Refusal = ConstructorParameters<typeof PolicyRefused>[1];

/** Waits until every engine that should has acknowledged a revision, or a later one. */
export class Rollout {
  readonly result: Promise<PolicyResult>;
  readonly #revision: () => number;
  readonly #waiting: Set<string>;
  readonly #steps = new Map<string, bigint>();
  readonly #timer: NodeJS.Timeout;
  #resolve!: (result: PolicyResult) => void;
  #reject!: (error: Error) => void;

  /** `revision` is asked for at the end: it grows when an engine brings a higher one from elsewhere. */
  constructor(revision: () => number, engineIds: Iterable<string>, timeoutMs: number) {
    this.#revision = revision;
    this.#waiting = new Set(engineIds);
    this.result = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.#timer = setTimeout(() => {
      this.fail(new PolicyUnacknowledged(this.#revision(), [...this.#waiting], timeoutMs));
    }, timeoutMs);
    this.#settle();
  }

  /** An engine came (back): it is waited for, too. */
  join(engineId: string): void {
    this.#waiting.add(engineId);
  }

  /** An engine went: it gets the policy when it comes back. */
  leave(engineId: string): void {
    if (this.#waiting.delete(engineId)) this.#settle();
  }

  acknowledge(engineId: string, step: bigint): void {
    this.#waiting.delete(engineId);
    this.#steps.set(engineId, step);
    this.#settle();
  }

  refuse(engineId: string, refusal: Refusal): void {
    this.fail(new PolicyRefused(engineId, refusal));
  }

  fail(error: Error): void {
    clearTimeout(this.#timer);
    this.#reject(error);
  }

  #settle(): void {
    if (this.#waiting.size > 0) return;
    clearTimeout(this.#timer);
    const engines = [...this.#steps].map(([engineId, step]) => ({ engineId, step }));
    this.#resolve({ revision: this.#revision(), engines });
  }
}
