import type { Command } from "commander";

/** A command by its name and the line that `triattn --help` shows; its file is loaded only when it is asked for. */
export interface CommandEntry {
  readonly name: string;
  /** Also the command's own summary. */
  readonly summary: string;
  load(): Promise<Command>;
}

export const commands: readonly CommandEntry[] = [
  {
    name: "serve",
    summary: "serve a model, each request's KV cache kept inside a budget",
    load: async () => (await import("./serve.ts")).serveCommand(),
  },
  {
    name: "doctor",
    summary: "what would keep this machine from serving, and what to do about it",
    load: async () => (await import("./doctor.ts")).doctorCommand(),
  },
  {
    name: "top",
    summary: "engines and requests of a control plane, live in the terminal",
    load: async () => (await import("./top.ts")).topCommand(),
  },
  {
    name: "plan",
    summary: "which budget fits a model on a GPU, and how fast it would be",
    load: async () => (await import("./plan.ts")).planCommand(),
  },
  {
    name: "keys",
    summary: "keys for engines that reach the control plane over TCP",
    load: async () => (await import("./keys.ts")).keysCommand(),
  },
  {
    name: "demo",
    summary: "full KV against compressed, side by side, on this machine",
    load: async () => (await import("./demo.ts")).demoCommand(),
  },
  {
    name: "stats",
    summary: "statistics of models' queries: list, show, import, verify",
    load: async () => (await import("./stats.ts")).statsCommand(),
  },
  {
    name: "calibrate",
    summary: "measure the statistics of a model's queries",
    load: async () => (await import("./calibrate.ts")).calibrateCommand(),
  },
  {
    name: "bench",
    summary: "measure throughput with and without triattn, side by side",
    load: async () => (await import("./bench.ts")).benchCommand(),
  },
  {
    name: "eval",
    summary: "what policies cost in answers: arms, budgets and tasks through the real engine",
    load: async () => (await import("./eval.ts")).evalCommand(),
  },
];
