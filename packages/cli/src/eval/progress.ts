import type { Row } from "./rows.ts";

const PLAIN_MS = 10_000;
const TERMINAL_MS = 200;

/** Time as people read it. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  return minutes < 60
    ? `${minutes} min ${whole % 60} s`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export interface ProgressOptions {
  readonly total: number;
  /** Rows that were there before. */
  readonly resumed: number;
  readonly terminal: boolean;
  readonly write: (text: string) => void;
  readonly now?: () => number;
}

/** How far a run is: one line that changes on a terminal, a line every ten seconds elsewhere. */
export class Progress {
  readonly #options: ProgressOptions;
  readonly #now: () => number;
  #done = 0;
  #began: number | undefined;
  #shown = Number.NEGATIVE_INFINITY;
  #open = false;

  constructor(options: ProgressOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** The engine serves: from now on time counts. */
  begin(): void {
    this.#began ??= this.#now();
  }

  done(row: Row): void {
    this.begin();
    this.#done += 1;
    const now = this.#now();
    const { terminal } = this.#options;
    const last = this.#done + this.#options.resumed >= this.#options.total;
    if (!last && now - this.#shown < (terminal ? TERMINAL_MS : PLAIN_MS)) return;
    this.#shown = now;
    const text = this.text(row);
    this.#options.write(terminal ? `\r\x1b[2K${text}` : `${text}\n`);
    this.#open = terminal;
  }

  text(row: Row): string {
    const { total, resumed } = this.#options;
    const done = Math.min(total, this.#done + resumed);
    const seconds = (this.#now() - (this.#began ?? this.#now())) / 1000;
    const left = ((total - done) * seconds) / Math.max(1, this.#done);
    return `${done} of ${total} rows, ${row.arm} on ${row.task}; ${duration(left)} left`;
  }

  /** Something else is to be said: the changing line is left as it stands. */
  note(text: string): void {
    this.#options.write(`${this.#open ? "\n" : ""}${text}\n`);
    this.#open = false;
  }

  end(): void {
    if (this.#open) this.#options.write("\n");
    this.#open = false;
  }
}
