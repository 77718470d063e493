import { columns } from "../text.ts";
import type { Check } from "./measured.ts";
import { kvBytes, kvDtypes } from "./memory.ts";
import type { Plan, PlanRow } from "./plan.ts";

const MEASURED_GPU = "NVIDIA H200";
const MEASURED_MODEL = "Qwen/Qwen3-8B";
const BAR = 40;

const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
const size = (bytes: number) =>
  bytes >= 2 ** 30
    ? gib(bytes)
    : bytes >= 2 ** 20
      ? `${(bytes / 2 ** 20).toFixed(0)} MiB`
      : `${(bytes / 1024).toFixed(1)} KiB`;
const number = (value: number) => Math.round(value).toLocaleString("en-US");
const percent = (value: number) => `${(100 * value).toFixed(1)} %`;
const label = (row: PlanRow) => (row.budget === null ? "full KV" : `budget ${number(row.budget)}`);

/** Where the step times come from, for this model and GPU. */
export function provenance({ gpu, model, options }: Pick<Plan, "gpu" | "model" | "options">): string {
  if (gpu.bandwidth === null) {
    return "step times need the memory's bandwidth: name the card by --gpu, or give --bandwidth";
  }
  const measured = "fitted to steps of Qwen3-8B measured on one H200 with vLLM 0.26.0";
  const differs = [
    gpu.name === MEASURED_GPU ? "" : "this card from its data sheet's bandwidth and operations",
    model.name === MEASURED_MODEL ? "" : "this model from the bytes it moves",
    options.tensorParallel === 1 ? "" : "several GPUs without what they say to each other",
    options.kvDtype === "bfloat16" || options.kvDtype === "float16" ? "" : "this KV dtype from its bytes",
  ].filter(Boolean);
  return differs.length === 0
    ? `step times: ${measured}`
    : `step times: ${measured}; extrapolated, not measured: ${differs.join("; ")}`;
}

/** Bars of tokens a second, readable without colour. */
export function bars(rows: readonly PlanRow[]): string {
  const most = Math.max(...rows.map(({ tokensPerSecond }) => tokensPerSecond ?? 0));
  if (most === 0) return "";
  const width = Math.max(...rows.map((row) => label(row).length));
  const lines = rows.map((row) => {
    const length = Math.round((BAR * (row.tokensPerSecond ?? 0)) / most);
    return `${label(row).padEnd(width)} ${"█".repeat(length)}${"·".repeat(BAR - length)} ${number(row.tokensPerSecond ?? 0)}`;
  });
  return ["tokens a second", ...lines].join("\n");
}

/** A plan for people. */
export function table(plan: Plan): string {
  const { model, gpu, options, memory, rows, recommended } = plan;
  const item = kvDtypes[options.kvDtype];
  const ranks = options.tensorParallel === 1 ? "" : `${options.tensorParallel} × `;
  const windowed = model.windows.filter((window) => window !== null).length;
  const facts = [
    ["model", `${model.name} on ${ranks}${gpu.name}`],
    [
      "weights",
      `${gib(memory.weightBytes)} ${model.dtype}, ${model.fileBytes === null ? `from the configuration (${(model.parameters.total / 1e9).toFixed(2)} B weights)` : "from the files"}`,
    ],
    [
      "KV",
      `${size(model.layers * memory.kvBytesPerLayer)} a token: ${model.layers} layers × ${model.kvHeads} KV heads × ${model.headDim} × 2 × ${item} byte${item === 1 ? "" : "s"}${windowed === 0 ? "" : `, ${windowed} layers with windows`}`,
    ],
    [
      "cache",
      `${gib(memory.cacheBytes)}, ${number(memory.cacheTokens)} tokens: ${options.utilization} of ${gib(memory.totalBytes)}, less the weights and about ${gib(memory.engineBytes)} of the engine's own`,
    ],
    ["asked", `${options.concurrency} requests at once, each of up to ${number(options.context)} tokens`],
  ];
  const head = ["", "KV a request", "fit whole", "running", "mean tokens", "step ms", "tok/s", "× full"];
  const body = rows.map((row) => [
    label(row),
    size(row.kvBytesPerRequest),
    number(row.fit),
    number(row.running),
    number(row.meanResident),
    row.stepMs?.toFixed(1) ?? "-",
    row.tokensPerSecond === null ? "-" : number(row.tokensPerSecond),
    row.timesFull === null ? "-" : row.timesFull.toFixed(2),
  ]);
  const chosen =
    recommended.budget === null
      ? `no budget recommended: ${recommended.reason}`
      : `recommended: --budget ${recommended.budget}, ${recommended.reason}`;
  return [
    columns(facts),
    "",
    columns([head, ...body], 1),
    "",
    ...(rows.length > 1 ? [bars(rows), ""] : []),
    chosen,
    provenance(plan),
    "What a budget does to answers is not predicted: measure it on your own tasks.",
  ]
    .filter((line, i, all) => line !== "" || all[i - 1] !== "")
    .join("\n");
}

/** A plan for programs. */
export function data(plan: Plan): Record<string, unknown> {
  const { model, gpu, options, memory, rows, recommended } = plan;
  const { windows, parameters, ...rest } = model;
  return {
    model: {
      ...rest,
      parameters: parameters.total,
      windowedLayers: windows.filter((window) => window !== null).length,
      kvBytesPerToken: kvBytes(model, memory, 1),
    },
    gpu,
    options,
    memory,
    rows,
    recommended,
    provenance: provenance(plan),
  };
}

/** A check for people. */
export function checkTable({ file, points, cacheTokens, meanError, worstError }: Check): string {
  const head = ["", "requests", "tokens", "measured ms", "predicted ms", "error"];
  const body = points.map((point) => [
    point.name,
    number(point.requests),
    number(point.tokens),
    point.measuredMs.toFixed(2),
    point.predictedMs.toFixed(2),
    percent(point.error),
  ]);
  const cache =
    cacheTokens === null
      ? []
      : [
          `cache: ${number(cacheTokens.measured)} tokens measured, ${number(cacheTokens.predicted)} predicted, ${percent(cacheTokens.error)}`,
        ];
  return [
    file,
    columns([head, ...body], 1),
    ...cache,
    `step time: mean error ${percent(meanError)}, worst ${percent(worstError)}`,
  ].join("\n");
}
