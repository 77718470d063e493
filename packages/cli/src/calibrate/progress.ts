import type { CalibrationProgress } from "./messages.ts";

const PHASES = {
  load: "loading the model",
  measure: "measuring",
  learn: "looking at what is missed in",
  fit: "fitting a probe:",
  write: "writing",
} as const;

/** Phases that count, and what. */
const COUNTED: Partial<Record<CalibrationProgress["phase"], string>> = {
  measure: "tokens",
  learn: "tokens",
  fit: "steps",
};
export const counts = (phase: CalibrationProgress["phase"]): boolean => phase in COUNTED;

function duration(seconds: number): string {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** Rate (tokens or steps a second) and rest (seconds) of a phase that counts, from its first report on. */
export class Rate {
  private start: { at: number; done: number; phase: string } | null = null;
  private readonly now: () => number;

  constructor(now: () => number = () => performance.now() / 1000) {
    this.now = now;
  }

  /** Null until there are two reports to compare. */
  update({ phase, done, total }: CalibrationProgress): { perSecond: number; secondsLeft: number } | null {
    const at = this.now();
    if (this.start?.phase !== phase) this.start = { at, done, phase };
    const elapsed = at - this.start.at;
    if (elapsed <= 0 || done <= this.start.done) return null;
    const perSecond = (done - this.start.done) / elapsed;
    return { perSecond, secondsLeft: (total - done) / perSecond };
  }
}

interface Output {
  readonly isTTY?: boolean;
  write(text: string): unknown;
}

/** Reports on a terminal in one line that changes; elsewhere in a line for each phase and each tenth. */
export function progressReporter(
  output: Output,
  now?: () => number,
): (progress: CalibrationProgress) => void {
  const rate = new Rate(now);
  let last = "";
  let tenth = -1;
  return (progress) => {
    const { phase, done, total } = progress;
    let text: string = PHASES[phase];
    if (counts(phase)) {
      text += ` ${done} of ${total} ${COUNTED[phase]}`;
      const speed = rate.update(progress);
      if (speed !== null) {
        text += `, ${speed.perSecond.toFixed(0)} ${COUNTED[phase]}/s, ${duration(speed.secondsLeft)} left`;
      }
    }
    if (output.isTTY === true) {
      output.write(`\r\x1b[2K${text}${phase === "write" && done === total ? "\n" : ""}`);
      return;
    }
    const part = counts(phase) ? Math.floor((10 * done) / Math.max(total, 1)) : -1;
    if (phase !== last || part > tenth) output.write(`${text}\n`);
    last = phase;
    tenth = part;
  };
}
