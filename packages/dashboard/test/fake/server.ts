import { existsSync, readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join, normalize } from "node:path";
import type { ApiEvent, ApiPolicyRequest, ApiStream } from "@triattn/protocol";
import { PolicyDocument, type PresetName, presets, REQUEST_HEADER } from "@triattn/protocol";
import { pageDirectory } from "../../build.ts";
import { Simulation, type SimulationOptions } from "./simulation.ts";

export interface FakeOptions extends SimulationOptions {
  readonly port?: number;
  readonly token?: string;
  /** How often requests and the state are sent, in ms. */
  readonly everyMs?: number;
  /** How many seconds of the simulation pass in one of the clock. */
  readonly pace?: number;
  /** Sent to the first stream at once: so many seconds that have passed, as if the page had been open. */
  readonly past?: number;
}

export interface FakeServer {
  readonly url: string;
  readonly simulation: Simulation;
  /** What the page sent that changes something. */
  readonly received: { method: string; path: string; body: unknown }[];
  /** Ends all streams; while it is down nothing is answered. */
  down(): Promise<void>;
  up(): Promise<void>;
  close(): Promise<void>;
}

const CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const TYPES: Record<string, string> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".css": "text/css",
  ".svg": "image/svg+xml",
  ".woff2": "font/woff2",
  ".txt": "text/plain",
};

class Failed extends Error {
  readonly status: number;
  readonly field: string | null;
  readonly value: string | null;
  readonly remedy: string | null;

  constructor(
    status: number,
    message: string,
    field: string | null = null,
    value: string | null = null,
    remedy: string | null = null,
  ) {
    super(message);
    this.status = status;
    this.field = field;
    this.value = value;
    this.remedy = remedy;
  }
}

/** A control plane's HTTP API over a simulated engine, and the built page. */
export async function startFake(options: FakeOptions): Promise<FakeServer> {
  const { everyMs = 500, pace = 1, token } = options;
  const simulation = new Simulation(options, Date.now() - (options.past ?? 0) * 1000);
  let past = options.past ?? 0;
  const streams = new Set<{ response: ServerResponse; requests: boolean }>();
  const log: ApiEvent[] = [];
  const received: FakeServer["received"] = [];

  const state = (): ApiStream["state"] => ({
    version: "0.1.0",
    time: new Date(simulation.time).toISOString(),
    policy: simulation.policy,
    engines: [simulation.engine()],
    controller: null,
  });
  const requests = (): ApiStream["requests"] => ({
    engineId: simulation.engineId,
    step: simulation.engine().step ?? 0,
    requests: simulation.requests(),
    omitted: 0,
  });
  const send = <K extends keyof ApiStream>(
    response: ServerResponse,
    kind: K,
    data: ApiStream[K],
    id?: number,
  ) =>
    response.write(
      `event: ${kind}\n${id === undefined ? "" : `id: ${id}\n`}data: ${JSON.stringify(data)}\n\n`,
    );
  const flushEvents = () => {
    const fresh = simulation.takeEvents();
    log.push(...fresh);
    log.splice(0, Math.max(0, log.length - 2000));
    const newest = fresh.at(-1);
    if (newest !== undefined) for (const { response } of streams) send(response, "events", fresh, newest.id);
  };
  const tick = () => {
    simulation.advance((everyMs / 1000) * pace);
    flushEvents();
    const kept = simulation.takeKept();
    for (const { response, requests: wanted } of streams) {
      send(response, "state", state());
      if (wanted) send(response, "requests", requests());
      if (kept !== null) send(response, "kept", kept);
    }
  };

  const openStream = (request: IncomingMessage, response: ServerResponse, query: URLSearchParams) => {
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    const stream = { response, requests: query.get("requests") === "1" };
    streams.add(stream);
    request.once("close", () => streams.delete(stream));
    simulation.watched = query.get("kept")?.split("/").slice(1).join("/") ?? null;
    flushEvents();
    for (; past > 0; past -= 4) {
      for (let i = 0; i < 8; i++) simulation.advance(0.5);
      if (stream.requests) send(response, "requests", requests());
      send(response, "state", state());
      flushEvents();
    }
    send(response, "state", state());
    if (stream.requests) send(response, "requests", requests());
    const after = Number(request.headers["last-event-id"] ?? 0);
    // As many as the control plane sends: the newest 200 to a new stream, 500 in a batch.
    const missed = log.filter(({ id }) => id > after).slice(after === 0 ? -200 : -500);
    const newest = missed.at(-1);
    if (newest !== undefined) send(response, "events", missed, newest.id);
    simulation.showKept();
    const kept = simulation.takeKept();
    if (kept !== null) send(response, "kept", kept);
  };

  const parse = (input: unknown): PolicyDocument => {
    if (typeof input === "string" && !Object.hasOwn(presets, input)) {
      throw new Failed(
        400,
        `policy is ${input}`,
        "policy",
        input,
        `one of ${Object.keys(presets).join(", ")}`,
      );
    }
    const parsed = PolicyDocument.safeParse(typeof input === "string" ? presets[input as PresetName] : input);
    if (parsed.success) return parsed.data;
    const [issue] = parsed.error.issues;
    const field = ["policy", ...(issue?.path ?? [])].join(".");
    throw new Failed(400, `${field}: ${issue?.message}`, field, null, issue?.message ?? null);
  };

  const answer = (method: string, path: string, body: unknown): unknown => {
    switch (`${method} ${path}`) {
      case "GET /api/state":
        return state();
      case "GET /api/policy/history":
        return { revisions: simulation.history };
      case "POST /api/policy/preview": {
        const { policy, rules = simulation.policy.rules } = body as ApiPolicyRequest;
        const document = parse(policy);
        const { revision: _, since: __, ...now } = simulation.policy;
        return {
          document,
          changes: changes(now, { policy: document, statistics: now.statistics, rules }),
          engines: [simulation.effect(document, rules)],
        };
      }
      case "PUT /api/policy": {
        const { policy, rules = simulation.policy.rules } = body as ApiPolicyRequest;
        const document = parse(policy);
        if (document.name === "refuse-me") {
          throw new Failed(
            422,
            `${simulation.engineId} refused it: needs statistics`,
            "policy.terms",
            "trig",
            "import statistics",
          );
        }
        const { revision } = simulation.setPolicy(document, rules);
        flushEvents();
        return { revision, engines: [{ engineId: simulation.engineId, step: simulation.engine().step }] };
      }
      case "POST /api/policy/rollback": {
        const wanted = (body as { revision: number }).revision;
        const old = simulation.history.find(({ revision }) => revision === wanted);
        if (old === undefined) throw new Failed(404, "no such revision", "revision", String(wanted));
        const { revision } = simulation.setPolicy(old.policy, old.rules);
        flushEvents();
        return { revision, engines: [{ engineId: simulation.engineId, step: simulation.engine().step }] };
      }
      default:
        throw new Failed(404, `no ${method} ${path}`);
    }
  };

  const handle = async (request: IncomingMessage, response: ServerResponse) => {
    const { pathname, searchParams } = new URL(request.url ?? "/", "http://localhost");
    response.setHeader("content-security-policy", CSP);
    const method = request.method ?? "GET";
    try {
      if (!pathname.startsWith("/api/")) return file(response, pathname);
      if (token !== undefined && request.headers.authorization !== `Bearer ${token}`)
        throw new Failed(401, "a token is wanted");
      if (method !== "GET" && request.headers[REQUEST_HEADER] === undefined)
        throw new Failed(403, `send ${REQUEST_HEADER}`);
      if (pathname === "/api/events") return openStream(request, response, searchParams);
      const body = method === "GET" ? undefined : await read(request);
      if (method !== "GET" && !pathname.endsWith("/preview")) received.push({ method, path: pathname, body });
      respond(response, 200, answer(method, pathname, body));
    } catch (error) {
      const { status = 500, message, field = null, value = null, remedy = null } = error as Failed;
      respond(response, status, { error: { message, field, value, remedy } });
    }
  };

  let server: Server | undefined;
  let port = options.port ?? 0;
  const up = async () => {
    const next = createServer((request, response) => {
      // A client that goes while it is read breaks this off, which is no error here.
      handle(request, response).catch(() => response.destroy());
    });
    await new Promise<void>((resolve) => next.listen(port, "127.0.0.1", resolve));
    port = (next.address() as AddressInfo).port;
    server = next;
  };
  const down = async () => {
    for (const { response } of streams) response.destroy();
    streams.clear();
    const old = server;
    server = undefined;
    old?.closeAllConnections();
    await new Promise((resolve) => (old === undefined ? resolve(undefined) : old.close(resolve)));
  };
  await up();
  const timer = setInterval(tick, everyMs);
  return {
    url: `http://127.0.0.1:${port}`,
    simulation,
    received,
    up,
    down,
    async close() {
      clearInterval(timer);
      await down();
    },
  };
}

function changes(from: unknown, to: unknown, path = ""): { path: string; from: unknown; to: unknown }[] {
  const isObject = (value: unknown): value is Record<string, unknown> =>
    typeof value === "object" && value !== null;
  if (!isObject(from) || !isObject(to)) return Object.is(from, to) ? [] : [{ path, from, to }];
  const names = [...new Set([...Object.keys(from), ...Object.keys(to)])];
  return names.flatMap((name) => changes(from[name], to[name], path === "" ? name : `${path}.${name}`));
}

async function read(request: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return JSON.parse(Buffer.concat(chunks).toString());
}

function respond(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify(body));
}

function file(response: ServerResponse, pathname: string): void {
  const path = join(pageDirectory, normalize(pathname === "/" ? "/index.html" : pathname));
  if (!path.startsWith(pageDirectory) || !existsSync(path)) {
    response.writeHead(404).end();
    return;
  }
  response.writeHead(200, { "content-type": TYPES[extname(path)] ?? "application/octet-stream" });
  response.end(readFileSync(path));
}
