import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { withSafetensors } from "./safetensors.ts";

const FIRST_LAYER = /^(?:.*\.)?layers\.0\.(?:self_attn|attention|attn)\.(q_proj|k_proj|qkv_proj)\.weight$/;
const OTHER_TOWER = /vis|audio|encoder/;
const DTYPES = ["F64", "F32", "F16", "BF16"];
const SLICE = 4096;

function files(directory: string): string[] {
  const index = join(directory, "model.safetensors.index.json");
  if (existsSync(index)) {
    const map = JSON.parse(readFileSync(index, "utf8")).weight_map as Record<string, string>;
    const found = Object.entries(map).flatMap(([name, file]) => (FIRST_LAYER.test(name) ? [file] : []));
    return [...new Set(found)].sort();
  }
  return readdirSync(directory)
    .filter((name) => /^model.*\.safetensors$/.test(name))
    .sort();
}

/**
 * SHA-256 over dtype, shape and three slices of 4,096 bytes each of the first layer's query and key projections
 * in a model directory, or null where they are not there, not readable, or quantized.
 * kernels/triattn/weights.py computes the same.
 */
export function weightsDigest(directory: string): string | null {
  const found = new Map<string, Buffer>();
  try {
    for (const file of files(directory)) {
      const usable = withSafetensors(join(directory, file), ({ tensors, bytes }) => {
        for (const [name, { dtype, shape, data_offsets: offsets }] of tensors) {
          const projection = FIRST_LAYER.exec(name)?.[1];
          if (projection === undefined || OTHER_TOWER.test(name)) continue;
          if (found.has(projection) || !DTYPES.includes(dtype)) return false;
          const size = offsets[1] - offsets[0];
          const length = Math.min(SLICE, size);
          const parts: Buffer[] = [Buffer.from(JSON.stringify([projection, dtype, shape]))];
          for (const from of [0, Math.floor((size - length) / 2), size - length]) {
            parts.push(Buffer.from("\n"), bytes(name, from, from + length));
          }
          found.set(projection, Buffer.concat(parts));
        }
        return true;
      });
      if (!usable) return null;
    }
  } catch {
    // Absent or damaged weights are the engine's to report; here they only cannot be compared.
    return null;
  }
  const names = [...found.keys()].sort();
  if (names.join() !== "k_proj,q_proj" && names.join() !== "qkv_proj") return null;
  const hash = createHash("sha256");
  for (const [i, name] of names.entries()) {
    if (i > 0) hash.update("\n");
    hash.update(found.get(name) as Buffer);
  }
  return hash.digest("hex");
}
