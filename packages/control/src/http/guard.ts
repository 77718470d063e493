import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { isIP } from "node:net";
import { hostname } from "node:os";
import { REQUEST_HEADER } from "@triattn/protocol";
import type { FastifyRequest } from "fastify";
import { HttpError } from "./errors.ts";
import type { CheckedHttpOptions } from "./options.ts";

/** On every answer. The page's scripts and styles are files of its own: nothing inline, nothing from elsewhere. */
export const SECURITY_HEADERS = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; " +
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "permissions-policy": "camera=(), geolocation=(), microphone=()",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
} as const;

const COOKIE = "triattn_session";
const SESSION_SECONDS = 12 * 3600;
const MOST_SESSIONS = 1024;
const SAFE = new Set(["GET", "HEAD", "OPTIONS"]);

/** Decides who may ask. Throws HttpError. */
export class Guard {
  readonly #token: Buffer | undefined;
  readonly #hosts: ReadonlySet<string>;
  /** Hashes of session ids, and when each ends. */
  readonly #sessions = new Map<string, number>();

  constructor({ token, host, allowedHosts }: CheckedHttpOptions) {
    this.#token = token === undefined ? undefined : digest(token);
    this.#hosts = new Set(["localhost", host, hostname(), ...allowedHosts].map((name) => name.toLowerCase()));
  }

  /**
   * A page of another site can make a browser ask here under a name of its own (DNS rebinding): only addresses and
   * the names of this server are answered. A form or page of another site cannot set the header (CSRF).
   */
  checkSource(request: FastifyRequest, api: boolean): void {
    const { host, origin } = request.headers;
    const name = hostName(host);
    if (name === undefined || !(isIP(name) !== 0 || this.#hosts.has(name))) {
      throw new HttpError(
        403,
        "host",
        host ?? "missing",
        "an address or a name of this server (allowedHosts)",
      );
    }
    const site = request.headers["sec-fetch-site"];
    const foreign = origin !== undefined && !sameOrigin(origin, host);
    if (foreign || (api && site !== undefined && site !== "same-origin" && site !== "none")) {
      throw new HttpError(403, "origin", origin ?? String(site), "a page that this server served");
    }
    if (!SAFE.has(request.method) && request.headers[REQUEST_HEADER] === undefined) {
      throw new HttpError(403, REQUEST_HEADER, "missing", `send the header ${REQUEST_HEADER}: 1`);
    }
  }

  /** The token, as a bearer's or by a session's cookie. Without a token in force everyone may. */
  checkToken(request: FastifyRequest): void {
    if (this.#token === undefined) return;
    const [, bearer] = /^Bearer +(\S+)$/i.exec(request.headers.authorization ?? "") ?? [];
    if (bearer !== undefined && this.#isToken(bearer)) return;
    const session = cookie(request.headers.cookie);
    if (bearer === undefined && session !== undefined && this.#isSession(session)) return;
    const remedy = "send authorization: Bearer TOKEN with the control plane's token";
    throw new HttpError(401, "authorization", bearer === undefined ? "missing" : "another token", remedy);
  }

  /** The `set-cookie` of a new session. Throws HttpError for another token. */
  open(token: string): string {
    if (this.#token !== undefined && !this.#isToken(token)) {
      throw new HttpError(401, "token", "another token", "the control plane's token");
    }
    const id = randomBytes(32).toString("base64url");
    const [oldest] = this.#sessions.keys();
    if (this.#sessions.size >= MOST_SESSIONS && oldest !== undefined) this.#sessions.delete(oldest);
    this.#sessions.set(digest(id).toString("hex"), Date.now() + SESSION_SECONDS * 1000);
    return `${COOKIE}=${id}; Path=/; HttpOnly; SameSite=Strict; Max-Age=${SESSION_SECONDS}`;
  }

  #isToken(token: string): boolean {
    // Digests are of one length, which comparing in constant time needs.
    return this.#token !== undefined && timingSafeEqual(digest(token), this.#token);
  }

  #isSession(id: string): boolean {
    const key = digest(id).toString("hex");
    const end = this.#sessions.get(key);
    if (end === undefined) return false;
    if (end > Date.now()) return true;
    this.#sessions.delete(key);
    return false;
  }
}

const digest = (text: string): Buffer => createHash("sha256").update(text).digest();

function cookie(header: string | undefined): string | undefined {
  return new RegExp(`(?:^|;\\s*)${COOKIE}=([\\w-]{1,64})(?:;|$)`).exec(header ?? "")?.[1];
}

/** The name in a Host header, without its port and an IPv6 address's brackets. */
function hostName(host: string | undefined): string | undefined {
  const [, bracketed, plain] =
    /^(?:\[([0-9a-f:.]+)\]|([^:[\]/?#@\s]+))(?::\d{1,5})?$/i.exec(host ?? "") ?? [];
  return (bracketed ?? plain)?.toLowerCase();
}

function sameOrigin(origin: string, host: string | undefined): boolean {
  // Behind a proxy that ends TLS the page's scheme is not ours.
  return origin === `http://${host}` || origin === `https://${host}`;
}
