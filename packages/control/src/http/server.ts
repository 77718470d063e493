import { statSync } from "node:fs";
import type { AddressInfo } from "node:net";
import rateLimit from "@fastify/rate-limit";
import statics from "@fastify/static";
import { fastify } from "fastify";
import type { Logger } from "pino";
import type { ControlPlane } from "../control-plane.ts";
import { ConfigError, EndpointError } from "../errors.ts";
import { describeError, HttpError } from "./errors.ts";
import { Guard, SECURITY_HEADERS } from "./guard.ts";
import { Hub } from "./hub.ts";
import { checkHttp, type HttpOptions, type HttpServer } from "./options.ts";
import { addRoutes } from "./routes.ts";

/** Bytes of the largest body: a policy with all its rules. */
const MAX_BODY = 256 * 1024;
const MAX_CONNECTIONS = 512;

/** Starts serving. Throws ConfigError for options, EndpointError for an address that cannot be listened at. */
export async function serveHttp(
  plane: ControlPlane,
  options: HttpOptions,
  logger: Logger,
): Promise<HttpServer> {
  const checked = checkHttp(options);
  const { host, port, dashboardDirectory, maxRequests } = checked;
  const app = fastify({
    logger: false,
    bodyLimit: MAX_BODY,
    requestTimeout: 30_000,
    // Streams last as long as their readers: closing must not wait for them.
    forceCloseConnections: true,
    routerOptions: { maxParamLength: 256 },
  });
  const guard = new Guard(checked);
  const hub = new Hub(plane);

  app.addHook("onRequest", async (request, reply) => {
    reply.headers(SECURITY_HEADERS);
    // The route that was found, not the URL: that may be written in many ways (/%61pi/state).
    const path = request.routeOptions.url ?? "";
    const api = path.startsWith("/api/") || path === "/metrics";
    guard.checkSource(request, api);
    if (!api) return;
    reply.header("cache-control", "no-store");
    if (path !== "/api/session") guard.checkToken(request);
  });
  app.setErrorHandler((error, request, reply) => {
    const { status, body } = describeError(error);
    if (status >= 500) logger.error({ err: error, method: request.method, url: request.url }, "HTTP request");
    if (status === 401) reply.header("www-authenticate", "Bearer");
    return reply.code(status).send(body);
  });
  const notFound = (request: { method: string; url: string }) =>
    new HttpError(404, "path", `${request.method} ${request.url.slice(0, 200)}`, "a path of the HTTP API");
  app.setNotFoundHandler((request) => {
    throw notFound(request);
  });
  await app.register(rateLimit, {
    max: maxRequests,
    timeWindow: 10_000,
    errorResponseBuilder: (_request, { max, after }) =>
      new HttpError(429, "requests", `more than ${max}`, `wait ${after}`),
  });
  addRoutes(app, plane, hub, guard, checked);
  if (dashboardDirectory !== undefined) {
    checkDirectory(dashboardDirectory);
    await app.register(statics, {
      root: dashboardDirectory,
      // Names of the page's assets carry a hash of what is in them.
      setHeaders: (reply, path) =>
        reply.header(
          "cache-control",
          /[/\\]assets[/\\]/.test(path) ? "max-age=31536000, immutable" : "no-cache",
        ),
    });
  }
  app.server.maxConnections = MAX_CONNECTIONS;
  try {
    await app.listen({ host, port });
  } catch (cause) {
    await hub.close();
    await app.close();
    throw new EndpointError("http", `${host}:${port}`, remedy(cause), { cause });
  }
  const url = `http://${host.includes(":") ? `[${host}]` : host}:${(app.server.address() as AddressInfo).port}`;
  logger.info({ url }, "serving HTTP");
  return {
    url,
    async close() {
      await hub.close();
      await app.close();
    },
  };
}

function checkDirectory(directory: string): void {
  if (statSync(directory, { throwIfNoEntry: false })?.isDirectory()) return;
  throw new ConfigError("http.dashboardDirectory", directory, "a directory with the built dashboard");
}

function remedy(cause: unknown): string {
  switch ((cause as NodeJS.ErrnoException).code) {
    case "EADDRINUSE":
      return "another port (0 takes a free one): this one is in use";
    case "EACCES":
      return "a port above 1023: this one needs privileges";
    default:
      return `an address of this machine to listen at (${String(cause)})`;
  }
}
