export { FieldError, ModelError, StatisticsError } from "./errors.ts";
export {
  canonicalJson,
  fingerprint,
  type ModelIdentity,
  modelGeometry,
  modelIdentity,
  readConfig,
} from "./fingerprint.ts";
export { type ImportOptions, importReference } from "./import-reference.ts";
export {
  localModelDirectory,
  type StatisticsEntry,
  StatisticsIndex,
  StatisticsLibrary,
  type StatisticsMatch,
  shippedStatisticsDirectory,
  userStatisticsDirectory,
} from "./library.ts";
export { rotaryFrequencies } from "./rotary.ts";
export {
  checkStatistics,
  hasCovariance,
  hasProbe,
  LearnedSelection,
  loadStatistics,
  probeUnits,
  readStatisticsMetadata,
  StatisticsMetadata,
  type StatisticsTensors,
} from "./statistics.ts";
export { weightsDigest } from "./weights.ts";
