import type { EngineRule, PolicyDocument } from "@triattn/protocol";

/** One policy in the order of all that this control plane has had. */
export interface PolicyRevision {
  readonly revision: number;
  readonly policy: PolicyDocument;
  /** Path of the statistics file, as the engine sees it. */
  readonly statistics: string | null;
  /** What requests it does not hold for, see EngineRule; the first that matches decides. */
  readonly rules: readonly EngineRule[];
  /** Policies that rules name by index. */
  readonly policies: readonly PolicyDocument[];
}

/**
 * The policy in force. It is replaced whole, never changed, and each replacement has a higher
 * revision: taking one back makes a new revision with the old content.
 */
export class PolicyStore {
  #current: PolicyRevision | undefined;
  #last = 0;

  get current(): PolicyRevision | undefined {
    return this.#current;
  }

  /** The highest revision there has been. */
  get last(): number {
    return this.#last;
  }

  replace(
    policy: PolicyDocument,
    statistics: string | null,
    rules: readonly EngineRule[] = [],
    policies: readonly PolicyDocument[] = [],
  ): PolicyRevision {
    this.#last += 1;
    const content = structuredClone({ policy, statistics, rules, policies });
    this.#current = deepFreeze({ revision: this.#last, ...content });
    return this.#current;
  }

  /** Goes back to `before`; undefined when there was none. */
  rollback(before: PolicyRevision | undefined): PolicyRevision | undefined {
    if (before === undefined) {
      this.#current = undefined;
      return undefined;
    }
    return this.replace(before.policy, before.statistics, before.rules, before.policies);
  }

  /**
   * An engine has `revision` from a control plane before this one: number the policy past it, so
   * that no number means two policies to that engine. Says whether the number changed.
   */
  raise(revision: number): boolean {
    if (revision < this.#last) return false;
    this.#last = revision;
    if (this.#current === undefined) return false;
    this.rollback(this.#current);
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
