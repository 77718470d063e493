import { createServer } from "node:net";
import { EnvironmentError } from "../errors.ts";
import type { EngineFlags } from "./flags.ts";

function listen(port: number, host: string | undefined): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen({ port, host: host ?? "0.0.0.0", exclusive: true }, () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : port));
    });
  });
}

/** A port that is free now. */
export const freePort = (): Promise<number> => listen(0, "127.0.0.1");

/** Throws EnvironmentError when the engine could not listen where its flags say. */
export async function checkPort({ port, bind, uds }: EngineFlags): Promise<void> {
  if (uds !== undefined) return;
  try {
    await listen(port, bind);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const where = bind === undefined ? String(port) : `${bind}:${port}`;
    const remedy = new Map([
      ["EADDRINUSE", "is taken by another process; stop that, or choose another: -- --port N"],
      ["EACCES", "needs privileges that this user lacks; choose one above 1023: -- --port N"],
      ["EADDRNOTAVAIL", "is not an address of this machine; choose another: -- --host ADDRESS"],
      ["ENOTFOUND", "is not an address of this machine; choose another: -- --host ADDRESS"],
    ]).get(String(code));
    throw new EnvironmentError("port", where, remedy ?? `cannot be listened at (${String(code)})`, {
      cause: error,
    });
  }
}
