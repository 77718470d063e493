import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { importReference, loadStatistics, ModelError, StatisticsError } from "../../src/index.ts";
import { temporaryDirectory } from "../helpers.ts";
import { modelDirectory, tiny, tinyTensors } from "./helpers.ts";

/** Made by torch.save: band f of head h of layer l has real part 100 l + 10 h + f. */
const fixture = join(import.meta.dirname, "fixtures", "tiny_reference.pt");

async function refusal(file: string, config: object = tiny): Promise<Error> {
  const directory = temporaryDirectory();
  const model = modelDirectory(directory, "model", config);
  const out = join(directory, "out.safetensors");
  const error = await importReference({ file, config: model, out }).then(
    () => {
      throw new Error("it was imported");
    },
    (reason: Error) => reason,
  );
  expect(readdirSync(directory)).toStrictEqual(["model"]);
  return error;
}

test("a file of torch.save becomes statistics, number by number", async () => {
  const directory = temporaryDirectory();
  const config = modelDirectory(directory, "model");
  const out = join(directory, "out.safetensors");
  const written = await importReference({
    file: fixture,
    config,
    out,
    source: "here",
    license: "Apache-2.0",
  });
  const { metadata, tensors } = loadStatistics(out);
  expect(tensors).toStrictEqual(tinyTensors());
  expect(metadata).toStrictEqual(written);
  expect(metadata).toMatchObject({ tokens: null, source: "here", license: "Apache-2.0" });
  expect(metadata.model).toMatchObject({ name: "tiny/reference", layers: 2, queryHeads: 4, kvHeads: 2 });
  expect(readdirSync(directory).sort()).toStrictEqual(["model", "out.safetensors"]);
});

test.each([
  ["another head dimension", { ...tiny, hidden_size: 64 }, "head_dim"],
  ["more layers", { ...tiny, num_hidden_layers: 3 }, "layer02_head00"],
  ["fewer layers", { ...tiny, num_hidden_layers: 1 }, "heads in"],
  ["more heads", { ...tiny, hidden_size: 64, num_attention_heads: 8 }, "layer00_head04"],
  ["part of the head rotated", { ...tiny, partial_rotary_factor: 0.5 }, "layer00_head00"],
  ["the other pairing", { ...tiny, model_type: "glm", head_dim: 8 }, "rope_style"],
])("a model with %s is refused", async (_, config, words) => {
  const error = await refusal(fixture, config);
  expect(error).toBeInstanceOf(StatisticsError);
  expect(error.message).toContain(words);
});

test("a model without rotary parameters is refused", async () => {
  const error = await refusal(fixture, { ...tiny, model_type: "unknown", rope_theta: undefined });
  expect(error).toBeInstanceOf(ModelError);
  expect(error.message).toContain("rope_theta");
});

test("every truncation is refused by one clear error", async () => {
  const path = join(temporaryDirectory(), "x.pt");
  const data = readFileSync(fixture);
  for (let length = 0; length < data.length; length += 487) {
    writeFileSync(path, data.subarray(0, length));
    const error = await refusal(path);
    expect(error).toBeInstanceOf(StatisticsError);
    expect(error.message).toContain("not a whole file of torch.save");
  }
});

test("damage is refused, or touches nothing that counts", async () => {
  const directory = temporaryDirectory();
  const config = modelDirectory(directory, "model");
  const out = join(directory, "out.safetensors");
  const path = join(directory, "x.pt");
  const data = readFileSync(fixture);
  for (let at = 3; at < data.length; at += 61) {
    const damaged = Buffer.from(data);
    damaged.writeUInt8(damaged.readUInt8(at) ^ 0x20, at);
    writeFileSync(path, damaged);
    try {
      await importReference({ file: path, config, out });
      expect(loadStatistics(out).tensors).toStrictEqual(tinyTensors());
    } catch (error) {
      expect(error).toBeInstanceOf(StatisticsError);
    }
  }
});

test("files of another kind", async () => {
  const path = join(temporaryDirectory(), "x.pt");
  expect((await refusal(join(path, "missing"))).message).toContain("cannot be read");
  writeFileSync(path, "\x80\x02cos\nsystem\n.");
  expect((await refusal(path)).message).toContain("not a whole file of torch.save");
  // A zip with nothing in it.
  writeFileSync(path, Buffer.concat([Buffer.from("PK\x05\x06"), Buffer.alloc(18)]));
  expect((await refusal(path)).message).toContain("has no data.pkl");
});
