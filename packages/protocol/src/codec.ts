import { Decoder, Encoder } from "@msgpack/msgpack";
import { checkFrame } from "./frame-check.ts";

const encoder = new Encoder({ useBigInt64: true, ignoreUndefined: true });
// A length is believed before its content is there: these keep five bytes from asking for gigabytes.
const decoder = new Decoder({
  useBigInt64: true,
  maxArrayLength: 65536,
  maxMapLength: 65536,
  maxExtLength: 0,
});

const INT64_MIN = -(2n ** 63n);
const UINT64_MAX = 2n ** 64n - 1n;

/**
 * Encode a message as msgspec would: plain maps, and every integer in its shortest form, so that
 * the same message has the same bytes on both sides. Absent fields are left out.
 *
 * @throws RangeError for an integer outside int64 and uint64; TypeError for what MessagePack does
 *   not carry here (functions, symbols, binary views other than Uint8Array, ill-formed strings).
 */
export function encode(message: unknown): Uint8Array {
  return encoder.encode(toWire(message));
}

/**
 * Decode one frame. Integers beyond 2⁵³ arrive as BigInt; byte strings are copied out of the frame.
 *
 * @throws Error when the frame is not exactly one MessagePack value of maps, arrays, strings, numbers,
 *   booleans, nil and byte strings.
 */
export function decode(frame: Uint8Array): unknown {
  checkFrame(frame);
  return fromWire(decoder.decode(frame));
}

function toWire(value: unknown): unknown {
  switch (typeof value) {
    case "bigint":
      if (value < INT64_MIN || value > UINT64_MAX) throw new RangeError(`${value} does not fit 64 bits`);
      return value >= -(2n ** 31n) && value < 2n ** 32n ? Number(value) : value;
    case "number":
      // The encoder writes larger numbers as floats, which msgspec refuses as integers.
      return Number.isSafeInteger(value) && (value >= 2 ** 32 || value < -(2 ** 31)) ? BigInt(value) : value;
    case "string":
      if (!value.isWellFormed()) throw new TypeError("a string with half a surrogate pair has no UTF-8");
      return value;
    case "function":
    case "symbol":
      throw new TypeError(`a ${typeof value} cannot be sent`);
    case "object":
      break;
    default:
      return value;
  }
  if (value === null || value instanceof Uint8Array) return value;
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) {
    throw new TypeError("wrap binary data in a Uint8Array");
  }
  if (Array.isArray(value)) return value.map(toWire);
  return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, toWire(entry)]));
}

function fromWire(value: unknown): unknown {
  if (typeof value === "bigint") {
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : value;
  }
  if (typeof value !== "object" || value === null) return value;
  // The decoder's byte strings alias the frame.
  if (value instanceof Uint8Array) return Uint8Array.from(value);
  if (Array.isArray(value)) return value.map(fromWire);
  if (Object.getPrototypeOf(value) !== Object.prototype) {
    throw new TypeError("a MessagePack extension, which no message here has");
  }
  for (const [key, entry] of Object.entries(value)) {
    (value as Record<string, unknown>)[key] = fromWire(entry);
  }
  return value;
}
