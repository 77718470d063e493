import type { PolicyDocument, Rule } from "@triattn/protocol";

/** What an operator decides: all of it is replaced together. */
export interface PolicyContent {
  readonly policy: PolicyDocument;
  /** Path of the statistics file, as the engine sees it. */
  readonly statistics: string | null;
  /** Requests that the policy does not hold for; the first that matches decides. Their policies are complete. */
  readonly rules: readonly Rule[];
}

/** One policy in the order of all that this control plane has had. */
export interface PolicyRevision extends PolicyContent {
  readonly revision: number;
  /** When it was put in force, ISO 8601. */
  readonly since: string;
}

/** Revisions remembered, to go back to. */
const MOST_REMEMBERED = 100;

/**
 * The policy in force. It is replaced whole, never changed, and each replacement has a higher
 * revision: taking one back makes a new revision with the old content.
 */
export class PolicyStore {
  #current: PolicyRevision | undefined;
  #last = 0;
  #history: PolicyRevision[] = [];

  get current(): PolicyRevision | undefined {
    return this.#current;
  }

  /** The highest revision there has been. */
  get last(): number {
    return this.#last;
  }

  /** Revisions that were in force, oldest first, the current one last. */
  get history(): readonly PolicyRevision[] {
    return this.#history;
  }

  /** `amend`: it takes the place of the current one in the history, too. */
  replace({ policy, statistics, rules }: PolicyContent, amend = false): PolicyRevision {
    this.#last += 1;
    if (amend) this.#history = this.#history.slice(0, -1);
    const content = structuredClone({ policy, statistics, rules });
    this.#current = deepFreeze({ revision: this.#last, since: new Date().toISOString(), ...content });
    this.#history = [...this.#history, this.#current].slice(-MOST_REMEMBERED);
    return this.#current;
  }

  /** The current revision never came into force: goes back to `before`; undefined when there was none. */
  rollback(before: PolicyRevision | undefined): PolicyRevision | undefined {
    this.#history = this.#history.filter((revision) => revision !== this.#current);
    this.#current = undefined;
    return before === undefined ? undefined : this.replace(before);
  }

  /**
   * An engine has `revision` from a control plane before this one: number the policy past it, so
   * that no number means two policies to that engine. Says whether the number changed.
   */
  raise(revision: number): boolean {
    if (revision < this.#last) return false;
    this.#last = revision;
    const current = this.#current;
    if (current === undefined) return false;
    this.rollback(current);
    return true;
  }
}

function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const entry of Object.values(value)) deepFreeze(entry);
  }
  return value;
}
