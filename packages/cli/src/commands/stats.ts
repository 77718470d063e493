import { mkdirSync } from "node:fs";
import { join, resolve } from "node:path";
import {
  hasCovariance,
  importReference,
  loadStatistics,
  probeUnits,
  type StatisticsEntry,
  StatisticsLibrary,
  type StatisticsMetadata,
  type StatisticsTensors,
  userStatisticsDirectory,
} from "@triattn/control";
import { Command } from "commander";
import { onDisk } from "../errors.ts";
import { columns } from "../text.ts";
import { withHelp } from "./help.ts";

interface Format {
  json?: boolean;
}

const print = (text: string): void => {
  process.stdout.write(`${text}\n`);
};
const printJson = (value: unknown): void => print(JSON.stringify(value));

/** A file name for a model's statistics: the last part of its name, in small letters. */
export function statisticsFileName(model: string): string {
  const last = model.split(/[\\/]/).filter(Boolean).at(-1) ?? model;
  return `${
    last
      .toLowerCase()
      .replaceAll(/[^a-z0-9._-]+/g, "-")
      .replace(/^[._-]+/, "") || "model"
  }.safetensors`;
}

/** |E q| / E |q|, averaged over bands: 1 when the queries of a head always point the same way. */
function concentration(
  { q_mean_real: re, q_mean_imag: im, q_abs_mean: abs }: StatisticsTensors,
  layers: number,
) {
  const size = abs.length / layers;
  const mean = (from: number, to: number): number => {
    let sum = 0;
    for (let i = from; i < to; i++) {
      sum += Math.hypot(re[i] as number, im[i] as number) / Math.max(abs[i] as number, 1e-30);
    }
    return Number((sum / (to - from)).toFixed(4));
  };
  const perLayer = Array.from({ length: layers }, (_, layer) => mean(layer * size, (layer + 1) * size));
  return { mean: mean(0, abs.length), perLayer };
}

function describe(path: string, metadata: StatisticsMetadata, units: number | null): [string, string][] {
  const { model, tokens, source, license, created_by: by } = metadata;
  const rotary = model.rotary;
  return [
    ["file", path],
    ["model", model.name],
    ["fingerprint", model.fingerprint],
    ["weights", model.weights ?? "not known"],
    ["geometry", `${model.layers} layers, ${model.queryHeads}/${model.kvHeads} heads of ${model.headDim}`],
    [
      "rotary",
      rotary ? `${rotary.type}, theta ${rotary.theta}, ${rotary.dim} dimensions, ${rotary.pairing}` : "",
    ],
    ["tokens", tokens === null ? "not known" : String(tokens)],
    ["source", source],
    ["licence", license || "not stated"],
    ["covariances", hasCovariance(metadata) ? "yes" : "none: the term expected cannot be used"],
    ["probe", units === null ? "none: the term probe cannot be used" : `${units} hidden units`],
    ["made by", by],
  ];
}

/** Mean of each learned term's weights over layers and KV heads, and of the share for distinct tokens. */
function learnedWeights({ learned, model }: StatisticsMetadata, tensors: StatisticsTensors) {
  const { learned_weights: weights, learned_share: share } = tensors;
  if (learned === null || weights === undefined || share === undefined) return null;
  const mean = (values: Float32Array) =>
    Number((values.reduce((sum, value) => sum + value, 0) / values.length).toFixed(3));
  const size = model.layers * model.kvHeads;
  const terms = learned.terms.map((term, i): [string, number] => [
    term,
    mean(weights.subarray(i * size, (i + 1) * size)),
  ]);
  return { terms: Object.fromEntries(terms), share: mean(share) };
}

function describeLearned(metadata: StatisticsMetadata, tensors: StatisticsTensors): [string, string][] {
  const found = learnedWeights(metadata, tensors);
  if (metadata.learned === null || found === null) return [["learned", "no weights"]];
  const numbers = (record: Record<string, number>) =>
    Object.entries(record)
      .map(([name, value]) => `${name} ${value}`)
      .join(", ");
  return [
    ["learned", `from ${metadata.learned.tokens} tokens; mean weights ${numbers(found.terms)}`],
    ["reserve", `${found.share} of the free places on average, for distinct tokens`],
    ["avoided", `of the damage of eviction, on held-out text: ${numbers(metadata.learned.kept)}`],
  ];
}

function list({ json }: Format): void {
  const { entries } = new StatisticsLibrary();
  if (json) {
    printJson({ statistics: entries });
    return;
  }
  const row = (e: StatisticsEntry) => [
    e.name,
    e.models.join(", "),
    String(e.tokens ?? "-"),
    e.fingerprint,
    e.origin,
  ];
  print(columns([["NAME", "MODEL", "TOKENS", "FINGERPRINT", "ORIGIN"], ...entries.map(row)]));
}

function locate(nameOrPath: string): string {
  const found = new StatisticsLibrary().find(nameOrPath);
  return typeof found === "string" ? resolve(found) : found.path;
}

function show(nameOrPath: string, { json }: Format): void {
  const path = locate(nameOrPath);
  const { metadata, tensors } = loadStatistics(path);
  const measured = concentration(tensors, metadata.model.layers);
  const units = probeUnits(metadata.model, tensors);
  if (json) {
    const weights = learnedWeights(metadata, tensors);
    printJson({ path, ...metadata, probeUnits: units, concentration: measured, learnedWeights: weights });
    return;
  }
  const rows = describe(path, metadata, units);
  const layers = measured.perLayer.map((value) => value.toFixed(2)).join(" ");
  rows.push(["concentration", `${measured.mean} on average; by layer ${layers}`]);
  rows.push(...describeLearned(metadata, tensors));
  print(columns(rows));
}

function verify(nameOrPath: string, { json, model }: Format & { model?: string }): void {
  const library = new StatisticsLibrary();
  const found = library.find(nameOrPath);
  const path = typeof found === "string" ? resolve(found) : found.path;
  const matched = model === undefined ? null : library.use(path, model);
  const { metadata } = matched ?? loadStatistics(path);
  const { fingerprint, name } = metadata.model;
  // A model that is not on this machine cannot be compared; the engine does it when it has loaded one.
  const compared = matched === null ? null : matched.model !== null;
  if (json) {
    printJson({ path, ok: true, model: name, fingerprint, comparedWithModel: compared });
    return;
  }
  print(`${path}: whole, for ${name}, fingerprint ${fingerprint}`);
  if (compared === true) print(`they belong to ${model}`);
  if (compared === false) print(`${model} is not on this machine, so it was not compared`);
}

interface ImportFlags extends Format {
  model: string;
  out?: string;
  name?: string;
  source?: string;
  license?: string;
}

async function importFile(file: string, flags: ImportFlags): Promise<void> {
  const { model, json, out: wanted, ...rest } = flags;
  const directory = userStatisticsDirectory();
  if (wanted === undefined) await onDisk(directory, () => mkdirSync(directory, { recursive: true }));
  let out = "";
  const place = (name: string) => {
    out = resolve(wanted ?? join(directory, statisticsFileName(name)));
    return out;
  };
  const metadata = await importReference({ file, config: model, out: place, ...rest });
  if (json) printJson({ path: out, ...metadata });
  // What the reference publishes are means alone.
  else print(columns(describe(out, metadata, null)));
}

/** `triattn stats`: the statistics on this machine. */
export function statsCommand(): Command {
  const json = ["--json", "one line of JSON on standard output"] as const;
  const unusable = [2, "the statistics or the model cannot be used, or do not belong together"] as const;
  const listed = withHelp(
    new Command("list")
      .description("List the statistics that ship with triattn and your own.")
      .option(...json)
      .action(list),
    { codes: [2], examples: ["triattn stats list"] },
  );
  const shown = withHelp(
    new Command("show")
      .description("Show what a statistics file holds.")
      .argument("<statistics>", "name or file")
      .option(...json)
      .action(show),
    { codes: [unusable], examples: ["triattn stats show qwen3-8b"] },
  );
  const imported = withHelp(
    new Command("import")
      .description(
        "Convert statistics of the reference implementation (.pt); nothing in the file is executed.",
      )
      .argument("<file>", "file of torch.save")
      .requiredOption("--model <path>", "directory or config.json of the model they were measured on")
      .option("--out <file>", "file to write (default: in your own library)")
      .option("--name <name>", "the model's name on the hub (default: as in the file or the configuration)")
      .option("--source <text>", "where the statistics come from, noted in the file")
      .option("--license <text>", "their licence, noted in the file")
      .option(...json)
      .action(importFile),
    { codes: [unusable, 3], examples: ["triattn stats import qwen3_8b.pt --model ./Qwen3-8B"] },
  );
  const verified = withHelp(
    new Command("verify")
      .description("Check that a statistics file is whole, and belongs to a model.")
      .argument("<statistics>", "name or file")
      .option("--model <model>", "directory or hub name of the model to compare with")
      .option(...json)
      .action(verify),
    { codes: [unusable], examples: ["triattn stats verify qwen3-8b --model ./Qwen3-8B"] },
  );
  const command = new Command("stats").description(
    "Statistics of models' queries, which trig, norm and expected terms need.",
  );
  for (const sub of [listed, shown, imported, verified]) command.addCommand(sub);
  return withHelp(command, { codes: [2], examples: ["triattn stats list", "triattn stats show qwen3-8b"] });
}
