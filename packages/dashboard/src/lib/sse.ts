/** One event of a text/event-stream. */
export interface ServerEvent {
  readonly event: string;
  readonly data: string;
  readonly id: string | undefined;
}

/** Longest line kept; a server that never ends one is not trusted with memory. */
const LONGEST = 32 * 1024 * 1024;

/**
 * A parser of server-sent events, fed with text in any pieces. `EventSource` cannot send a token in a
 * header, so the stream is read by `fetch`. Throws RangeError for a line beyond 32 MiB.
 */
export class SseParser {
  readonly #emit: (event: ServerEvent) => void;
  #rest = "";
  #event = "";
  #data: string[] = [];
  #id: string | undefined;

  constructor(emit: (event: ServerEvent) => void) {
    this.#emit = emit;
  }

  push(text: string): void {
    const all = this.#rest + text;
    // A \r at the end may be half of a \r\n: it waits for what follows.
    const usable = all.endsWith("\r") ? all.length - 1 : all.length;
    let start = 0;
    const ends = /\r\n|\n|\r/g;
    for (let match = ends.exec(all); match !== null && match.index < usable; match = ends.exec(all)) {
      this.#line(all.slice(start, match.index));
      start = match.index + match[0].length;
    }
    this.#rest = all.slice(start);
    if (this.#rest.length > LONGEST) throw new RangeError("the server sent a line beyond 32 MiB");
  }

  #line(line: string): void {
    if (line === "") {
      if (this.#data.length > 0) {
        this.#emit({ event: this.#event || "message", data: this.#data.join("\n"), id: this.#id });
      }
      this.#event = "";
      this.#data = [];
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (field === "event") this.#event = value;
    else if (field === "data") this.#data.push(value);
    else if (field === "id" && !value.includes("\0")) this.#id = value;
  }
}
