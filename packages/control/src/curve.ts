import { type Context, curveKeyPair, Reply } from "zeromq";
import { EndpointError } from "./errors.ts";

/** A CURVE key pair, each key 40 characters of Z85 text. */
export interface CurveKeys {
  readonly publicKey: string;
  readonly secretKey: string;
}

export interface CurveOptions {
  /** The control plane's keys. */
  readonly server: CurveKeys;
  /** Public keys of the engines that may connect. */
  readonly engines: readonly string[];
}

export function createCurveKeys(): CurveKeys {
  return curveKeyPair();
}

const Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

/** Z85 text of bytes, four at a time (ZeroMQ RFC 32). */
export function z85(bytes: Uint8Array): string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let text = "";
  for (let at = 0; at + 4 <= bytes.length; at += 4) {
    const value = view.getUint32(at);
    for (const divisor of [85 ** 4, 85 ** 3, 85 ** 2, 85, 1]) {
      text += Z85[Math.floor(value / divisor) % 85];
    }
  }
  return text;
}

export function checkCurve(curve: CurveOptions): void {
  const keys = {
    "curve.server.publicKey": curve.server.publicKey,
    "curve.server.secretKey": curve.server.secretKey,
  };
  for (const [field, key] of Object.entries(keys)) {
    if (key.length !== 40) {
      // A secret must not end up in a log.
      throw new EndpointError(field, `${key.length} characters`, "a CURVE key of 40 characters");
    }
  }
  for (const key of curve.engines) {
    if (key.length !== 40) throw new EndpointError("curve.engines", key, "CURVE keys of 40 characters");
  }
  if (curve.engines.length === 0) {
    throw new EndpointError("curve.engines", "empty", "the public key of each engine that may connect");
  }
}

/**
 * Answers libzmq's question whether a client may connect (ZAP, ZeroMQ RFC 27): CURVE alone proves
 * only that a client knows the server's public key.
 */
export async function authenticate(
  context: Context,
  allowed: readonly string[],
  onDenied: () => void,
): Promise<{ close(): void }> {
  const socket = new Reply({ context, linger: 0 });
  await socket.bind("inproc://zeromq.zap.01");
  const keys = new Set(allowed);
  const serve = async () => {
    for await (const [version, request, , , , mechanism, credentials] of socket) {
      const known =
        mechanism?.toString() === "CURVE" && credentials?.length === 32 && keys.has(z85(credentials));
      if (!known) onDenied();
      const status = known ? ["200", "OK"] : ["400", "unknown key"];
      await socket.send([version ?? "1.0", request ?? "", ...status, "", ""]);
    }
  };
  // The loop ends with an error when the socket is closed under it, which is how it is meant to end.
  serve().catch(() => {});
  return { close: () => socket.close() };
}
