export * from "@triattn/control";
export type {
  ApiCounters,
  ApiEngine,
  ApiError,
  ApiEvent,
  ApiHistory,
  ApiKept,
  ApiPolicy,
  ApiPolicyRequest,
  ApiPolicyResponse,
  ApiPreview,
  ApiRequests,
  ApiRollbackRequest,
  ApiSessionRequest,
  ApiState,
  ApiStream,
  Counters,
  EngineEvent,
  JsonCount,
  ModelGeometry,
  PolicyDocument,
  PolicyInput,
  PresetName,
  RequestState,
  Rule,
} from "@triattn/protocol";
export { EngineDied, EnvironmentError } from "./errors.ts";
export { type Draw, drawTrace, traceTask, traceTasks } from "./eval/tasks/index.ts";
export { gradeTrace, type Split, type Trace, type TraceGrade, type TraceTask } from "./eval/tasks/trace.ts";
export { version } from "./package.ts";
export type { DashboardOptions } from "./serve/dashboard.ts";
export type { EngineExit, EngineState, Stream } from "./serve/engine-process.ts";
export { prepare, type ServeOptions, type ServePlan } from "./serve/prepare.ts";
export type { EngineEnvironment } from "./serve/python.ts";
export { type Served, type StartOptions, serve, start } from "./serve/serve.ts";
