export {
  type PolicyBuilder,
  type PolicySettings,
  policy,
  type RuleBuilder,
  rule,
  type TermKind,
  type TermOptions,
} from "./builders.ts";
export type { ControlPlane, ControlPlaneOptions, SetPolicyOptions } from "./control-plane.ts";
export { createControlPlane } from "./control-plane.ts";
export type { CurveKeys, CurveOptions } from "./curve.ts";
export { createCurveKeys } from "./curve.ts";
export type { DropKind } from "./drops.ts";
export * from "./errors.ts";
export type { LinkLimits } from "./flood.ts";
export { checkHttp, type HttpOptions } from "./http/options.ts";
export {
  type AllowedEngine,
  addEngine,
  createKeyDirectory,
  defaultKeyDirectory,
  engineKeyVariables,
  type KeyDirectory,
  readCurve,
  readEngineKeys,
  readKeyDirectory,
  revokeEngine,
} from "./keys.ts";
export { checkPolicy, parsePolicy, preset } from "./policy.ts";
export type { PolicyContent, PolicyRevision } from "./policy-store.ts";
export { checkPressure, type PressureOptions, type PressureView } from "./pressure/driver.ts";
export type { ReferenceSettings } from "./reference-env.ts";
export { policyFromReference } from "./reference-env.ts";
export { type RequestOverrides, requestOptions, type TriattnOptions } from "./request-options.ts";
export { matchesModel, parseRules } from "./rules.ts";
export * from "./stats/index.ts";
export type * from "./types.ts";
export type { Watching, WatchOptions } from "./watches.ts";
