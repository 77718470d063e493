import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { EngineDied, EnvironmentError } from "../errors.ts";
import { pythonRoot } from "../package.ts";

export interface EngineCommand {
  readonly python: string;
  /** Arguments of the interpreter. */
  readonly args: readonly string[];
  readonly environment: NodeJS.ProcessEnv;
  /** Between SIGTERM and SIGKILL. */
  readonly graceMs: number;
}

/** How the engine ended. */
export interface EngineExit {
  /** Null when a signal ended it. */
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** Whether it had been asked to. */
  readonly asked: boolean;
}

export type Stream = "stdout" | "stderr";

/** `starting` → `ready` → `stopping` → `ended`; any of them may be followed by `ended`. */
export type EngineState = "starting" | "ready" | "stopping" | "ended";

/** An engine of several processes writes a traceback of each; the one that began it comes first. */
const TAIL_LINES = 400;
/** How long the guardian gets, beyond the grace, before its whole process group is killed. */
const GUARDIAN_MS = 10_000;
const LAST_LINES_MS = 2_000;

/** The interpreter's options keep the user's environment out of the guardian: it needs the standard library only. */
const GUARD = ["-I", "-S", join(pythonRoot, "triattn", "launch.py")];

const SIGNALS = new Map<number, NodeJS.Signals>([
  [1, "SIGHUP"],
  [2, "SIGINT"],
  [4, "SIGILL"],
  [6, "SIGABRT"],
  [7, "SIGBUS"],
  [8, "SIGFPE"],
  [9, "SIGKILL"],
  [11, "SIGSEGV"],
  [15, "SIGTERM"],
]);

/**
 * An engine and everything it starts, under a guardian (kernels/triattn/launch.py) that ends with them. Nothing
 * is left when `exited` resolves; and when this process dies, however it does, the guardian ends the engine.
 */
export class EngineProcess {
  /** The guardian's; the engine's processes are below it. */
  readonly pid: number;
  /** Resolves when the engine and all it started are gone; never rejects. */
  readonly exited: Promise<EngineExit>;
  readonly #child: ChildProcess;
  readonly #graceMs: number;
  readonly #tail: string[] = [];
  #state: EngineState = "starting";

  private constructor(child: ChildProcess, pid: number, graceMs: number) {
    this.#child = child;
    this.pid = pid;
    this.#graceMs = graceMs;
    this.exited = new Promise((resolve) => {
      child.once("exit", (code, signal) => {
        const asked = this.#state === "stopping";
        this.#state = "ended";
        // A guardian that was itself killed leaves its group behind.
        this.#signalGroup("SIGKILL");
        const passedOn = code !== null && code > 128 ? SIGNALS.get(code - 128) : undefined;
        const exit =
          passedOn === undefined ? { code, signal, asked } : { code: null, signal: passedOn, asked };
        // The last lines of the log are still to be read; but not for as long as a stranger holds the pipe.
        const enough = setTimeout(() => child.stdout?.destroy() && child.stderr?.destroy(), LAST_LINES_MS);
        child.once("close", () => {
          clearTimeout(enough);
          resolve(exit);
        });
      });
    });
  }

  /** Starts the engine. `onLine` gets what it writes. Throws EnvironmentError when it cannot be started. */
  static async start(
    command: EngineCommand,
    onLine: (line: string, stream: Stream) => void,
  ): Promise<EngineProcess> {
    const grace = String(command.graceMs / 1000);
    const child = spawn(command.python, [...GUARD, grace, command.python, ...command.args], {
      env: command.environment,
      // A session of its own: Ctrl-C in the terminal reaches this process only, which then stops the engine in order.
      detached: true,
      stdio: ["pipe", "pipe", "pipe"],
    });
    await new Promise<void>((resolve, reject) => {
      child.once("spawn", resolve);
      child.once("error", (error) => {
        reject(
          new EnvironmentError("python", command.python, `cannot be started (${error.message})`, {
            cause: error,
          }),
        );
      });
    });
    // The pipe stays open for as long as this process lives; that is all it is for.
    child.stdin?.on("error", () => {});
    const engine = new EngineProcess(child, child.pid as number, command.graceMs);
    const read = (input: Readable | null, stream: Stream) => {
      if (input === null) return;
      createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY }).on("line", (line) => {
        engine.#tail.push(line);
        if (engine.#tail.length > TAIL_LINES) engine.#tail.shift();
        onLine(line, stream);
      });
    };
    read(child.stdout, "stdout");
    read(child.stderr, "stderr");
    return engine;
  }

  get state(): EngineState {
    return this.#state;
  }

  /** The last lines it wrote. */
  get tail(): readonly string[] {
    return this.#tail;
  }

  /** Takes note that it serves. */
  ready(): void {
    if (this.#state === "starting") this.#state = "ready";
  }

  /** Stops it in order: SIGTERM, and SIGKILL after the grace. */
  stop(): Promise<EngineExit> {
    if (this.#state === "ended" || this.#state === "stopping") return this.exited;
    this.#state = "stopping";
    this.#child.kill("SIGTERM");
    this.#killLater(this.#graceMs + GUARDIAN_MS);
    return this.exited;
  }

  /** Kills it and everything it started, at once. */
  kill(): Promise<EngineExit> {
    if (this.#state === "ended") return this.exited;
    this.#state = "stopping";
    // The guardian kills at the second request, and finds what left the process group. Requests that arrive
    // together count as one, so they go on until it has ended.
    const ask = () => this.#child.kill("SIGTERM");
    ask();
    const asking = setInterval(ask, 100);
    void this.exited.then(() => clearInterval(asking));
    this.#killLater(5_000);
    return this.exited;
  }

  /** The error that its end is, when nobody asked for it. */
  died(exit: EngineExit): EngineDied {
    return new EngineDied(exit.code, exit.signal, this.#tail);
  }

  #killLater(ms: number): void {
    const timer = setTimeout(() => this.#signalGroup("SIGKILL"), ms);
    timer.unref();
    void this.exited.then(() => clearTimeout(timer));
  }

  #signalGroup(signal: NodeJS.Signals): void {
    try {
      process.kill(-this.pid, signal);
    } catch {
      // Nobody is left in it.
    }
  }
}
