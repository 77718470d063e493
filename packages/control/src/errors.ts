import { FieldError } from "./stats/errors.ts";

export { FieldError };

/** A setting, policy or environment variable that cannot be used. */
export class ConfigError extends FieldError {}

/** The control plane's address cannot be used: taken, open to other users, or not protected. */
export class EndpointError extends FieldError {}

/** An engine cannot use a policy. What was in force before is in force again. */
export class PolicyRefused extends FieldError {
  /** Engine that refused. */
  readonly engineId: string;
  /** Revision that it refused. */
  readonly revision: number;
  /** The engine's own words. */
  readonly reason: string;

  constructor(
    engineId: string,
    refusal: { revision: number; field: string; value: string; remedy: string; message: string },
  ) {
    super(refusal.field, refusal.value, refusal.remedy);
    this.engineId = engineId;
    this.revision = refusal.revision;
    this.reason = refusal.message;
  }
}

/** Engines did not say in time that they use a policy. They still get it as soon as they answer. */
export class PolicyUnacknowledged extends FieldError {
  readonly revision: number;
  readonly engineIds: readonly string[];

  constructor(revision: number, engineIds: readonly string[], timeoutMs: number) {
    super(
      "policy",
      `revision ${revision}`,
      `no acknowledgement from ${engineIds.join(", ")} within ${timeoutMs} ms: see that these engines run`,
    );
    this.revision = revision;
    this.engineIds = engineIds;
  }
}

/** No engine was ready in time. */
export class EngineTimeout extends FieldError {}

/** The control plane was closed while this was being waited for. */
export class ControlPlaneClosed extends Error {
  override name = "ControlPlaneClosed";

  constructor() {
    super("the control plane is closed");
  }
}
