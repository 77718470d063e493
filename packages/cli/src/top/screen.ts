import type { Size } from "./view.ts";

const ENTER = "\x1b[?1049h\x1b[?25l";
const LEAVE = "\x1b[?25h\x1b[?1049l";

/** The terminal, taken over and always given back: at the end, by a signal, by an error that nobody foresaw. */
export class Screen {
  readonly #input: NodeJS.ReadStream;
  readonly #output: NodeJS.WriteStream;
  readonly #onKeys: (bytes: string) => void;
  readonly #onResize: () => void;
  #open = false;
  readonly #leave = () => this.leave();

  constructor(
    input: NodeJS.ReadStream,
    output: NodeJS.WriteStream,
    onKeys: (bytes: string) => void,
    onResize: () => void,
  ) {
    this.#input = input;
    this.#output = output;
    this.#onKeys = onKeys;
    this.#onResize = onResize;
  }

  get size(): Size {
    return { columns: this.#output.columns || 80, rows: this.#output.rows || 24 };
  }

  enter(): void {
    if (this.#open) return;
    this.#open = true;
    process.on("exit", this.#leave);
    this.#output.on("resize", this.#onResize);
    this.#input.setRawMode(true);
    this.#input.setEncoding("utf8");
    this.#input.on("data", this.#onKeys);
    this.#input.resume();
    this.#output.write(ENTER);
  }

  leave(): void {
    if (!this.#open) return;
    this.#open = false;
    process.off("exit", this.#leave);
    this.#output.off("resize", this.#onResize);
    this.#input.off("data", this.#onKeys);
    this.#input.setRawMode(false);
    this.#input.pause();
    this.#output.write(LEAVE);
  }

  draw(lines: readonly string[]): void {
    if (!this.#open) return;
    // Each line is cleared behind what is written, so that nothing flickers.
    this.#output.write(`\x1b[H${lines.map((line) => `${line}\x1b[K`).join("\r\n")}\x1b[J`);
  }

  /** Ctrl-Z: gives the terminal to the shell until it continues this process. */
  suspend(): void {
    this.leave();
    process.once("SIGCONT", () => {
      this.enter();
      this.#onResize();
    });
    process.kill(process.pid, "SIGSTOP");
  }
}
