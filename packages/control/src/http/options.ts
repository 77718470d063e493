import { DEFAULT_HTTP_PORT } from "@triattn/protocol";
import { ConfigError } from "../errors.ts";

/** How the control plane serves its HTTP API. */
export interface HttpOptions {
  /** Default 127.0.0.1. An address that other machines reach needs a token. */
  readonly host?: string | undefined;
  /** Default 9470; 0 takes a free one. */
  readonly port?: number | undefined;
  /** Secret that every request of the API must carry; 16 characters or more. Default on loopback: none. */
  readonly token?: string | undefined;
  /** The dashboard's built page. Default: only the API is served. */
  readonly dashboardDirectory?: string | undefined;
  /** Names, beside its own, under which this server is reached: `triattn.example.net`. */
  readonly allowedHosts?: readonly string[] | undefined;
  /** Most streams of `GET /api/events` at once. Default 64. */
  readonly maxStreams?: number | undefined;
  /** Most requests of one address in ten seconds. Default 600; a tenth of it for those that change something. */
  readonly maxRequests?: number | undefined;
}

/** What serves. */
export interface HttpServer {
  /** Base URL, without a slash at its end. */
  readonly url: string;
  close(): Promise<void>;
}

export interface CheckedHttpOptions {
  readonly host: string;
  readonly port: number;
  readonly token: string | undefined;
  readonly dashboardDirectory: string | undefined;
  readonly allowedHosts: readonly string[];
  readonly maxStreams: number;
  readonly maxRequests: number;
}

const SHORTEST_TOKEN = 16;
const LOOPBACK = /^(localhost|::1|127(\.\d{1,3}){3})$/;

/** Throws ConfigError for what would be open to others, or cannot be. */
export function checkHttp(options: HttpOptions): CheckedHttpOptions {
  const { host = "127.0.0.1", port = DEFAULT_HTTP_PORT, token, dashboardDirectory } = options;
  if (!Number.isInteger(port) || port < 0 || port > 65535) {
    throw new ConfigError("http.port", port, "a whole number from 0 (a free one) to 65535");
  }
  if (token !== undefined && (token.length < SHORTEST_TOKEN || /[^\x21-\x7e]/.test(token))) {
    // A secret must not end up in a log.
    throw new ConfigError(
      "http.token",
      `${token.length} characters`,
      `${SHORTEST_TOKEN} or more printable ASCII characters without spaces (openssl rand -hex 32)`,
    );
  }
  if (!LOOPBACK.test(host) && token === undefined) {
    throw new ConfigError(
      "http.host",
      host,
      "give a token, or an address of this machine only (127.0.0.1): others could change the policy",
    );
  }
  const { allowedHosts = [], maxStreams = 64, maxRequests = 600 } = options;
  return { host, port, token, dashboardDirectory, allowedHosts, maxStreams, maxRequests };
}
