import fc from "fast-check";
import { expect, test } from "vitest";
import { PickleError, readPickle, TorchTensor } from "../../src/stats/pickle.ts";

const bytes = (...parts: (string | number[])[]): Buffer =>
  Buffer.concat(
    parts.map((part) => (typeof part === "string" ? Buffer.from(part, "latin1") : Buffer.from(part))),
  );
const text = (value: string): Buffer => {
  const length = Buffer.alloc(4);
  length.writeUInt32LE(value.length);
  return Buffer.concat([Buffer.from("X"), length, Buffer.from(value)]);
};
const read = (...parts: (string | number[] | Buffer)[]): unknown =>
  readPickle(
    Buffer.concat([bytes([0x80, 2]), ...parts.map((p) => (Buffer.isBuffer(p) ? p : bytes(p))), bytes(".")]),
  );

test("plain values", () => {
  expect(read("}")).toStrictEqual(new Map());
  expect(read("}(", text("a"), "K\x05", text("b"), "](K\x01K\x02eu")).toStrictEqual(
    new Map<string, unknown>([
      ["a", 5],
      ["b", [1, 2]],
    ]),
  );
  expect(read("(N", [0x88, 0x89], "J\xff\xff\xff\xffM\x01\x02", [0x8a, 1, 0xfe], "t")).toStrictEqual([
    null,
    true,
    false,
    -1,
    513,
    -2,
  ]);
  expect(read("G?\xf8\x00\x00\x00\x00\x00\x00")).toBe(1.5);
  expect(read("K\x07q\x01h\x01", [0x86])).toStrictEqual([7, 7]);
});

test("a tensor", () => {
  const value = read(
    "ctorch._utils\n_rebuild_tensor_v2\n((",
    text("storage"),
    "ctorch\nFloatStorage\n",
    text("0"),
    text("cpu"),
    "K\x04tQK\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR",
  );
  expect(value).toStrictEqual(new TorchTensor({ key: "0", length: 4 }, 0, [4], [1]));
});

test.each([
  ["a function", ["cos\nsystem\n", text("echo"), "\x85R"], "os.system"],
  ["a function by the newer opcode", [text("builtins"), text("eval"), [0x93]], "builtins.eval"],
  ["another function of torch", ["ctorch\nload\n"], "torch.load"],
  ["another storage", ["ctorch\nLongStorage\n"], "torch.LongStorage"],
  ["an object's state", ["}}b"], "opcode 0x62"],
  ["an old-style instance", ["(ios\nsystem\n"], "opcode 0x69"],
  ["a new object", [")N", [0x81]], "opcode 0x81"],
  ["an extension", [[0x82, 1]], "opcode 0x82"],
  ["a call of what is no function", ["})R"], "no function"],
  ["a rebuild of what is no storage", ["ctorch._utils\n_rebuild_tensor_v2\n(}tR"], "torch.save does not"],
  ["an OrderedDict with arguments", ["ccollections\nOrderedDict\n](K\x01e\x85R"], "torch.save does not"],
  ["a persistent id of something else", ["(", text("module"), "tQ"], "not of a float32 storage"],
  ["memo never set", ["h\x07"], "memo 7"],
  ["an empty stack", ["\x85"], "stack runs empty"],
  ["items set on a number", ["K\x01K\x02K\x03s"], "no dict"],
  ["a key that is a dict", ["}}K\x01s"], "key is not text"],
  ["items appended to a dict", ["}K\x01a"], "no list"],
  ["a missing mark", ["]e"], "mark"],
  ["values left behind", ["K\x01K\x02"], "leaves values"],
  ["a long number", [[0x8a, 8, 1, 2, 3, 4, 5, 6, 7, 8]], "too large"],
])("%s is refused", (_, parts, words) => {
  expect(() => read(...(parts as (string | number[] | Buffer)[]))).toThrow(PickleError);
  expect(() => read(...(parts as (string | number[] | Buffer)[]))).toThrow(words);
});

test("a pickle that ends early, or is of another protocol", () => {
  for (const data of ["", "\x80", "\x80\x02}", "\x80\x02X\xff\xff\xff\xffa", "\x80\x02cos"]) {
    expect(() => readPickle(bytes(data))).toThrow("truncated");
  }
  expect(() => readPickle(bytes("\x80\x09."))).toThrow("protocol is 9");
});

test("no bytes make it do anything but return or refuse", () => {
  const opcodes = [..."}])(tseauNJKMGXqrhjcQR.\x80\x85\x86\x87\x88\x89\x8a\x8c\x93\x94\x95"].map((c) =>
    c.charCodeAt(0),
  );
  const byte = fc.oneof(fc.constantFrom(...opcodes), fc.integer({ min: 0, max: 255 }));
  fc.assert(
    fc.property(fc.array(byte, { maxLength: 60 }), (data) => {
      try {
        readPickle(Buffer.from(data));
      } catch (error) {
        expect(error).toBeInstanceOf(PickleError);
      }
    }),
    { numRuns: 2000, seed: 1 },
  );
});
