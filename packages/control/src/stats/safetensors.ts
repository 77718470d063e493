import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { z } from "zod";
import { StatisticsError } from "./errors.ts";

/** Bytes an element, by the names of the format (github.com/huggingface/safetensors). */
const BYTES: Record<string, number> = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
  C64: 8,
};
const HEADER_LIMIT = 100_000_000;

const size = z.int().min(0);
const TensorInfo = z.strictObject({
  dtype: z.string(),
  shape: z.array(size).max(32),
  data_offsets: z.tuple([size, size]),
});
const Header = z.record(z.string(), z.unknown());
const Metadata = z.record(z.string(), z.string());

export type TensorInfo = z.infer<typeof TensorInfo>;

/** An open safetensors file whose header has been verified against the file's size. */
export interface Safetensors {
  metadata: Record<string, string>;
  tensors: Map<string, TensorInfo>;
  /** Bytes `[from, to)` of a tensor. */
  bytes(name: string, from?: number, to?: number): Buffer;
}

const REMEDY = "get the file again";

function parse(
  text: string,
  path: string,
): { metadata: Record<string, string>; tensors: Map<string, TensorInfo> } {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new StatisticsError("safetensors header", path, `is not JSON; ${REMEDY}`);
  }
  const header = Header.safeParse(json);
  if (!header.success) throw new StatisticsError("safetensors header", path, `is not an object; ${REMEDY}`);
  const { __metadata__: raw = {}, ...rest } = header.data;
  const metadata = Metadata.safeParse(raw);
  if (!metadata.success) throw new StatisticsError("safetensors metadata", path, `is not text; ${REMEDY}`);
  const tensors = new Map<string, TensorInfo>();
  for (const [name, value] of Object.entries(rest)) {
    const info = TensorInfo.safeParse(value);
    if (!info.success) throw new StatisticsError(`tensor ${name}`, path, `is badly described; ${REMEDY}`);
    tensors.set(name, info.data);
  }
  return { metadata: metadata.data, tensors };
}

function verify(tensors: Map<string, TensorInfo>, length: number, path: string): void {
  let end = 0;
  const sorted = [...tensors].sort(([, a], [, b]) => a.data_offsets[0] - b.data_offsets[0]);
  for (const [name, { dtype, shape, data_offsets: offsets }] of sorted) {
    const bytes = BYTES[dtype];
    if (bytes === undefined)
      throw new StatisticsError(`dtype of tensor ${name}`, dtype, `is unknown; ${REMEDY}`);
    const expected = shape.reduce((product, n) => product * n, bytes);
    if (offsets[1] - offsets[0] !== expected) {
      throw new StatisticsError(
        `data_offsets of tensor ${name}`,
        offsets,
        `should span ${expected} bytes; ${REMEDY}`,
      );
    }
    // The format leaves no room between tensors, so a gap or an overlap is damage.
    if (offsets[0] !== end) {
      throw new StatisticsError(
        `data_offsets of tensor ${name}`,
        offsets,
        `should begin at ${end}; ${REMEDY}`,
      );
    }
    end = offsets[1];
  }
  if (end !== length) {
    const what = end > length ? "is truncated" : "has bytes after the last tensor";
    throw new StatisticsError(
      "safetensors file",
      path,
      `${what} (${length} bytes of data, ${end} named); ${REMEDY}`,
    );
  }
}

/** Opens a safetensors file for the time of `use`. Throws StatisticsError for anything but a whole one. */
export function withSafetensors<T>(path: string, use: (file: Safetensors) => T): T {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? String(error);
    throw new StatisticsError("statistics", path, `cannot be read (${code})`, { cause: error });
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw new StatisticsError("statistics", path, "is not a file");
    const read = (offset: number, length: number): Buffer => {
      const buffer = Buffer.alloc(length);
      const got = readSync(fd, buffer, 0, length, offset);
      if (got !== length) throw new StatisticsError("safetensors file", path, `is truncated; ${REMEDY}`);
      return buffer;
    };
    const total = stat.size;
    const length = total < 8 ? 0 : Number(read(0, 8).readBigUInt64LE());
    if (length < 2 || length > HEADER_LIMIT || length > total - 8) {
      throw new StatisticsError(
        "safetensors file",
        path,
        `has no header of safetensors, or is truncated; ${REMEDY}`,
      );
    }
    const start = 8 + length;
    const { metadata, tensors } = parse(read(8, length).toString("utf8"), path);
    verify(tensors, total - start, path);
    return use({
      metadata,
      tensors,
      bytes(name, from = 0, to = Number.POSITIVE_INFINITY) {
        const [begin, end] = (tensors.get(name) as TensorInfo).data_offsets;
        return read(start + begin + from, Math.min(to, end - begin) - from);
      },
    });
  } finally {
    closeSync(fd);
  }
}

/** A safetensors file of float32 tensors, in the order given. */
export function encodeSafetensors(
  tensors: [name: string, shape: number[], values: Float32Array][],
  metadata: Record<string, string>,
): Buffer {
  const header: Record<string, unknown> = { __metadata__: metadata };
  let offset = 0;
  const parts: Buffer[] = [];
  for (const [name, shape, values] of tensors) {
    const end = offset + values.byteLength;
    header[name] = { dtype: "F32", shape, data_offsets: [offset, end] };
    parts.push(Buffer.from(values.buffer, values.byteOffset, values.byteLength));
    offset = end;
  }
  const text = Buffer.from(JSON.stringify(header));
  // Aligned to eight bytes, as the format's own writer does.
  const padded = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, " ")]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  return Buffer.concat([length, padded, ...parts]);
}
