import { readFileSync, statSync } from "node:fs";
import type { Readable } from "node:stream";
import { type Entry, fromBufferPromise } from "yauzl";
import { StatisticsError } from "./errors.ts";
import { PickleError, readPickle, type TorchTensor } from "./pickle.ts";

const LIMIT = 256 * 2 ** 20;
const REMEDY = "get the file again";

/** A file of torch.save: its value, and the numbers of each of its tensors. */
export interface TorchFile {
  value: unknown;
  /** Elements of a tensor, row-major. */
  numbers(tensor: TorchTensor): Float32Array;
}

async function collect(stream: Readable): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of stream) parts.push(part as Buffer);
  return Buffer.concat(parts);
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value >>> 0;
});

/** The checksum of zip (CRC-32 of ISO 3309); Node's own came only with 20.15. */
function crc32(data: Buffer): number {
  let value = 0xffffffff;
  for (const byte of data) value = (CRC_TABLE[(value ^ byte) & 0xff] as number) ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

/** The records of a torch archive (a zip that compresses nothing), by their name under its one folder. */
async function records(data: Buffer): Promise<Map<string, Buffer>> {
  const zip = await fromBufferPromise(data, { lazyEntries: true, strictFileNames: true });
  const found = new Map<string, Buffer>();
  for await (const entry of zip.eachEntry() as AsyncIterable<Entry>) {
    // torch stores its records; refusing others leaves nothing to inflate without bound.
    if (entry.compressionMethod !== 0) throw new Error(`${entry.fileName} is compressed`);
    const content = await collect(await zip.openReadStreamPromise(entry));
    if (crc32(content) !== entry.crc32) throw new Error(`${entry.fileName} is damaged`);
    found.set(entry.fileName.slice(entry.fileName.indexOf("/") + 1), content);
  }
  return found;
}

function view(tensor: TorchTensor, data: Buffer | undefined): Float32Array {
  const { storage, shape, stride, offset } = tensor;
  if (data === undefined || data.length !== storage.length * 4 || shape.length !== stride.length) {
    throw new PickleError(`storage ${storage.key} is missing or has another size`);
  }
  const total = shape.reduce((product, n) => product * n, 1);
  const last = shape.reduce((sum, n, d) => sum + (n - 1) * (stride[d] as number), offset);
  if (total > storage.length || (total > 0 && last >= storage.length)) {
    throw new PickleError(`a tensor reaches beyond storage ${storage.key}`);
  }
  const result = new Float32Array(total);
  for (let i = 0; i < total; i++) {
    let at = offset;
    for (let d = shape.length - 1, rest = i; d >= 0; d--) {
      const n = shape[d] as number;
      at += (rest % n) * (stride[d] as number);
      rest = Math.floor(rest / n);
    }
    result[i] = data.readFloatLE(at * 4);
  }
  return result;
}

/**
 * Reads a file written by torch.save (zip form) that holds plain float32 tensors in dicts and lists.
 * Runs nothing that the file names. Throws StatisticsError for anything damaged or of another kind.
 */
export async function readTorchFile(path: string): Promise<TorchFile> {
  let data: Buffer;
  try {
    const { size } = statSync(path);
    if (size > LIMIT)
      throw new StatisticsError("file", path, `${size} bytes is too large for statistics (${LIMIT})`);
    data = readFileSync(path);
  } catch (error) {
    if (error instanceof StatisticsError) throw error;
    const code = (error as NodeJS.ErrnoException).code ?? String(error);
    throw new StatisticsError("file", path, `cannot be read (${code})`, { cause: error });
  }
  let found: Map<string, Buffer>;
  try {
    found = await records(data);
  } catch (error) {
    const remedy = `is not a whole file of torch.save (${(error as Error).message}); ${REMEDY}`;
    throw new StatisticsError("file", path, remedy, { cause: error });
  }
  const order = found.get("byteorder")?.toString("utf8") ?? "little";
  const pickle = found.get("data.pkl");
  if (pickle === undefined || order !== "little") {
    const what = pickle === undefined ? "has no data.pkl" : `has byte order ${order}`;
    throw new StatisticsError(
      "file",
      path,
      `${what}, so it is not a file of torch.save on this kind of machine`,
    );
  }
  const guard = <T>(read: () => T): T => {
    try {
      return read();
    } catch (error) {
      if (!(error instanceof PickleError)) throw error;
      throw new StatisticsError("file", path, `is refused: ${error.message}`, { cause: error });
    }
  };
  const value = guard(() => readPickle(pickle));
  return { value, numbers: (tensor) => guard(() => view(tensor, found.get(`data/${tensor.storage.key}`))) };
}
