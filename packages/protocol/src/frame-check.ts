/** Containers inside containers: no message has more than six. */
const DEEPEST = 32;

/** What follows a first byte from 0xc0 on: `size` bytes, and a count of so many bytes of what then follows. */
type Shape = readonly [size: number, counter: number, follows: "none" | "bytes" | "items" | "pairs"];

const fixed = (size: number): Shape => [size, 0, "none"];
const SHAPES: readonly (Shape | undefined)[] = [
  ...[fixed(0), undefined, fixed(0), fixed(0)],
  ...([1, 2, 4] as const).map((counter): Shape => [0, counter, "bytes"]),
  // Extensions carry a byte that says which.
  ...([1, 2, 4] as const).map((counter): Shape => [1, counter, "bytes"]),
  ...[4, 8, 1, 2, 4, 8, 1, 2, 4, 8].map(fixed),
  ...[2, 3, 5, 9, 17].map(fixed),
  ...([1, 2, 4] as const).map((counter): Shape => [0, counter, "bytes"]),
  ...([2, 4] as const).map((counter): Shape => [0, counter, "items"]),
  ...([2, 4] as const).map((counter): Shape => [0, counter, "pairs"]),
];

/**
 * Walks over a frame of MessagePack without making anything of it. A decoder makes room for what a header promises
 * before it looks: nested headers of few bytes each would have it fill the memory. Here no more may be promised than
 * there are bytes left, and only so deep.
 *
 * @throws Error when the frame is not exactly one MessagePack value.
 */
export function checkFrame(frame: Uint8Array): void {
  const { length } = frame;
  /** Values yet to come at each depth. */
  const left = [1];
  /** The sum of these. */
  let promised = 1;
  let at = 0;
  while (left.length > 0) {
    const top = left.length - 1;
    if (left[top] === 0) {
      left.pop();
      continue;
    }
    if (at >= length) throw new Error("MessagePack that ends too early");
    left[top] = (left[top] as number) - 1;
    promised -= 1;
    const head = frame[at++] as number;
    let [bytes, values] = [0, 0];
    if (head < 0x80 || head >= 0xe0) continue;
    if (head < 0x90) values = (head & 0x0f) * 2;
    else if (head < 0xa0) values = head & 0x0f;
    else if (head < 0xc0) bytes = head & 0x1f;
    else {
      const shape = SHAPES[head - 0xc0];
      if (shape === undefined) throw new Error("MessagePack with a byte that means nothing");
      const [size, counter, follows] = shape;
      if (at + counter > length) throw new Error("MessagePack that ends too early");
      let count = 0;
      for (let i = 0; i < counter; i++) count = count * 256 + (frame[at++] as number);
      bytes = size + (follows === "bytes" ? count : 0);
      values = follows === "items" ? count : follows === "pairs" ? count * 2 : 0;
    }
    at += bytes;
    if (values > 0) {
      if (left.length > DEEPEST) throw new Error(`MessagePack more than ${DEEPEST} deep`);
      left.push(values);
      promised += values;
    }
    if (at + promised > length) throw new Error("MessagePack that promises more than it holds");
  }
  if (at !== length) throw new Error(`MessagePack with ${length - at} bytes after its end`);
}
