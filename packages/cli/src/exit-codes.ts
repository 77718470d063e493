/** Exit codes of the command line; signals end it with 128 + their number. */
export const ExitCode = {
  ok: 0,
  /** An error that nobody foresaw. */
  unexpected: 1,
  /** A flag, policy, budget or statistics file that cannot be used. */
  usage: 2,
  /** Python or the engine is missing or not supported, a port is taken, a disk is full. */
  environment: 3,
  /** The engine ended by itself. */
  engineDied: 4,
  /** The demo ran, and nothing was compressed. */
  notCompressed: 5,
} as const;
