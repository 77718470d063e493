/**
 * A reader of the subset of Python's pickle that torch.save writes for plain tensors in dicts and lists.
 * It builds data, never calls anything: the only callables it knows are the two below, and it models them itself.
 * Opcodes and their meaning: Python's standard library, pickletools.
 */

/** A storage of a torch file: float32 numbers under `data/<key>` of the archive. */
export interface Storage {
  key: string;
  length: number;
}

/** A tensor as torch describes it: a strided view of a storage. */
export class TorchTensor {
  readonly storage: Storage;
  readonly offset: number;
  readonly shape: number[];
  readonly stride: number[];

  constructor(storage: Storage, offset: number, shape: number[], stride: number[]) {
    this.storage = storage;
    this.offset = offset;
    this.shape = shape;
    this.stride = stride;
  }
}

export class PickleError extends Error {}

class Global {
  readonly name: string;

  constructor(name: string) {
    this.name = name;
  }
}

const REBUILD = "torch._utils._rebuild_tensor_v2";
const ORDERED = "collections.OrderedDict";
const FLOAT = "torch.FloatStorage";
const ALLOWED = [REBUILD, ORDERED, FLOAT];
const MARK = Symbol("mark");

type Value = unknown;

const isCount = (value: Value): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isCounts = (value: Value): value is number[] => Array.isArray(value) && value.every(isCount);

class Reader {
  private readonly data: Buffer;
  private at = 0;

  constructor(data: Buffer) {
    this.data = data;
  }

  take(length: number): Buffer {
    if (length > this.data.length - this.at) throw new PickleError("it is truncated");
    this.at += length;
    return this.data.subarray(this.at - length, this.at);
  }

  line(): string {
    const end = this.data.indexOf(10, this.at);
    if (end < 0) throw new PickleError("it is truncated");
    const text = this.data.toString("latin1", this.at, end);
    this.at = end + 1;
    return text;
  }

  byte = (): number => this.take(1).readUInt8();
  uint32 = (): number => this.take(4).readUInt32LE();
}

class Machine {
  private readonly stack: Value[] = [];
  private readonly memo = new Map<number, Value>();
  private readonly input: Reader;

  constructor(input: Reader) {
    this.input = input;
  }

  private pop(): Value {
    const value = this.stack.pop();
    if (value === undefined || value === MARK) throw new PickleError("its stack runs empty");
    return value;
  }

  private top(): Value {
    const value = this.stack.at(-1);
    if (value === undefined) throw new PickleError("its stack runs empty");
    return value;
  }

  private popMark(): Value[] {
    const start = this.stack.lastIndexOf(MARK);
    if (start < 0) throw new PickleError("a mark is missing");
    const items = this.stack.splice(start + 1);
    this.stack.pop();
    return items;
  }

  private popText(): string {
    const value = this.pop();
    if (typeof value !== "string") throw new PickleError("a name is not text");
    return value;
  }

  private tuple(length: number): void {
    if (length > this.stack.length) throw new PickleError("its stack runs empty");
    const items = this.stack.splice(this.stack.length - length);
    if (items.includes(MARK)) throw new PickleError("its stack runs empty");
    this.stack.push(items);
  }

  private setItems(items: Value[]): void {
    const target = this.top();
    if (!(target instanceof Map) || items.length % 2 !== 0) throw new PickleError("items set on no dict");
    for (let i = 0; i < items.length; i += 2) {
      const key = items[i];
      if (typeof key !== "string" && typeof key !== "number") throw new PickleError("a key is not text");
      target.set(key, items[i + 1]);
    }
  }

  private append(items: Value[]): void {
    const target = this.top();
    if (!Array.isArray(target)) throw new PickleError("items appended to no list");
    for (const item of items) target.push(item);
  }

  private global(module: string, name: string): void {
    const full = `${module}.${name}`;
    if (!ALLOWED.includes(full))
      throw new PickleError(`it refers to ${full}, which statistics have no use for`);
    this.stack.push(new Global(full));
  }

  private memoize(index: number): void {
    this.memo.set(index, this.top());
  }

  private recall(index: number): void {
    const value = this.memo.get(index);
    if (value === undefined) throw new PickleError(`memo ${index} was never set`);
    this.stack.push(value);
  }

  private persistent(): void {
    const id = this.pop();
    if (!Array.isArray(id)) throw new PickleError("a persistent id is not of a storage");
    const [kind, type, key, , length] = id as Value[];
    const float = type instanceof Global && type.name === FLOAT;
    if (kind !== "storage" || !float || typeof key !== "string" || !isCount(length)) {
      throw new PickleError("a persistent id is not of a float32 storage");
    }
    this.stack.push({ key, length } satisfies Storage);
  }

  private reduce(): void {
    const args = this.pop();
    const callable = this.pop();
    if (!(callable instanceof Global) || !Array.isArray(args))
      throw new PickleError("it calls what is no function");
    if (callable.name === ORDERED && args.length === 0) {
      this.stack.push(new Map());
      return;
    }
    const [storage, offset, shape, stride] = args as [Storage | undefined, Value, Value, Value];
    const whole = typeof storage?.key === "string" && isCount(storage.length);
    if (callable.name !== REBUILD || !whole || !isCount(offset) || !isCounts(shape) || !isCounts(stride)) {
      throw new PickleError(`it calls ${callable.name} in a way torch.save does not`);
    }
    this.stack.push(new TorchTensor(storage, offset, shape, stride));
  }

  /** Executes one opcode; true at the end. */
  private step(): boolean {
    const { stack, input } = this;
    const opcode = input.byte();
    switch (String.fromCharCode(opcode)) {
      case "\x80": {
        const version = input.byte();
        if (version > 5) throw new PickleError(`its protocol is ${version}`);
        break;
      }
      case "\x95":
        input.take(8);
        break;
      case "}":
        stack.push(new Map());
        break;
      case "]":
      case ")":
        stack.push([]);
        break;
      case "(":
        stack.push(MARK);
        break;
      case "t":
        stack.push(this.popMark());
        break;
      case "\x85":
      case "\x86":
      case "\x87":
        this.tuple(opcode - 0x84);
        break;
      case "s": {
        const value = this.pop();
        this.setItems([this.pop(), value]);
        break;
      }
      case "u":
        this.setItems(this.popMark());
        break;
      case "a":
        this.append([this.pop()]);
        break;
      case "e":
        this.append(this.popMark());
        break;
      case "N":
        stack.push(null);
        break;
      case "\x88":
      case "\x89":
        stack.push(opcode === 0x88);
        break;
      case "J":
        stack.push(input.take(4).readInt32LE());
        break;
      case "K":
        stack.push(input.byte());
        break;
      case "M":
        stack.push(input.take(2).readUInt16LE());
        break;
      case "\x8a": {
        const bytes = input.take(input.byte());
        if (bytes.length > 6) throw new PickleError("a number is too large");
        stack.push(bytes.length === 0 ? 0 : bytes.readIntLE(0, bytes.length));
        break;
      }
      case "G":
        stack.push(input.take(8).readDoubleBE());
        break;
      case "X":
        stack.push(input.take(input.uint32()).toString("utf8"));
        break;
      case "\x8c":
        stack.push(input.take(input.byte()).toString("utf8"));
        break;
      case "q":
        this.memoize(input.byte());
        break;
      case "r":
        this.memoize(input.uint32());
        break;
      case "\x94":
        this.memoize(this.memo.size);
        break;
      case "h":
        this.recall(input.byte());
        break;
      case "j":
        this.recall(input.uint32());
        break;
      case "c":
        this.global(input.line(), input.line());
        break;
      case "\x93": {
        const name = this.popText();
        this.global(this.popText(), name);
        break;
      }
      case "Q":
        this.persistent();
        break;
      case "R":
        this.reduce();
        break;
      case ".":
        return true;
      default:
        throw new PickleError(`opcode 0x${opcode.toString(16)} has no place in plain tensors`);
    }
    return false;
  }

  run(): Value {
    while (!this.step());
    const value = this.pop();
    if (this.stack.length > 0) throw new PickleError("it leaves values behind");
    return value;
  }
}

/** The value that a pickle describes: dicts as Map, lists and tuples as arrays. Throws PickleError. */
export function readPickle(data: Buffer): unknown {
  return new Machine(new Reader(data)).run();
}
