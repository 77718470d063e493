import type {
  ApiHistory,
  ApiPolicyResponse,
  ApiPreview,
  PolicyInput,
  PresetName,
  Rule,
} from "@triattn/protocol";
import type { FastifyInstance } from "fastify";
import { z } from "zod";
import type { ControlPlane, SetPolicyOptions } from "../control-plane.ts";
import { explain, parsePolicy } from "../policy.ts";
import { differences, previewEngine } from "../preview.ts";
import { parseRules } from "../rules.ts";
import { StatisticsLibrary } from "../stats/library.ts";
import type { PolicyResult } from "../types.ts";
import { HttpError } from "./errors.ts";
import type { Guard } from "./guard.ts";
import type { Hub, StreamOptions } from "./hub.ts";
import type { CheckedHttpOptions } from "./options.ts";
import { jsonCount, policyView } from "./views.ts";

const PolicyRequest = z.strictObject({
  policy: z.union([z.string(), z.looseObject({})]),
  rules: z.array(z.unknown()).optional(),
  statistics: z.string().min(1).max(4096).nullable().optional(),
});
const RollbackRequest = z.strictObject({ revision: z.int().min(1) });
const SessionRequest = z.strictObject({ token: z.string().max(1024) });
const StreamQuery = z.strictObject({
  requests: z.enum(["0", "1"]).optional(),
  kept: z.string().max(1024).includes("/", "ENGINE/REQUEST").optional(),
});

interface Wanted {
  readonly policy: PolicyInput | PresetName;
  readonly options: SetPolicyOptions;
}

/** Everything under /api, and /metrics. */
export function addRoutes(
  app: FastifyInstance,
  plane: ControlPlane,
  hub: Hub,
  guard: Guard,
  options: CheckedHttpOptions,
): void {
  const few = { config: { rateLimit: { max: Math.max(1, Math.floor(options.maxRequests / 10)) } } };

  app.get("/api/state", () => hub.state());

  app.get("/metrics", async (_request, reply) => {
    const { contentType, text } = await plane.metrics();
    return reply.type(contentType).send(text);
  });

  app.get("/api/events", (request, reply) => {
    const query = check(StreamQuery, request.query, "query");
    if (hub.streams >= options.maxStreams) {
      throw new HttpError(503, "streams", hub.streams, `close one: at most ${options.maxStreams} at once`);
    }
    const stream: StreamOptions = {
      requests: query.requests === "1",
      kept: query.kept === undefined ? undefined : splitKept(query.kept, plane),
      lastEventId: lastEventId(request.headers["last-event-id"]),
    };
    reply.hijack();
    const headers = { ...reply.getHeaders(), "content-type": "text/event-stream", "x-accel-buffering": "no" };
    reply.raw.writeHead(200, headers as Record<string, string>);
    request.raw.socket.setNoDelay(true);
    hub.attach(reply.raw, stream);
  });

  app.get(
    "/api/policy/history",
    (): ApiHistory => ({ revisions: plane.history().map(policyView).reverse() }),
  );

  app.put("/api/policy", few, async (request) => {
    const { policy, options: how } = readPolicy(request.body);
    return answer(await plane.setPolicy(policy, how));
  });

  app.post("/api/policy/rollback", few, async (request) => {
    const { revision } = check(RollbackRequest, request.body, "body");
    return answer(await plane.rollback(revision));
  });

  app.post("/api/policy/preview", few, async (request): Promise<ApiPreview> => {
    const wanted = readPolicy(request.body);
    const current = plane.policy;
    const policy = parsePolicy(wanted.policy);
    const rules = parseRules(wanted.options.rules ?? current?.rules ?? [], policy);
    const { statistics = current?.statistics ?? null } = wanted.options;
    const next = { policy, statistics, rules };
    const before = current && {
      policy: current.policy,
      statistics: current.statistics,
      rules: current.rules,
    };
    const requests = await hub.requests();
    const engines = plane.engines().filter(({ connected }) => connected);
    return {
      document: policy,
      changes: differences(before ?? {}, next),
      engines: engines.map((engine) =>
        previewEngine(engine, requests.get(engine.engineId) ?? [], current, next),
      ),
    };
  });

  app.post(
    "/api/session",
    { config: { rateLimit: { max: 10, timeWindow: "1 minute" } } },
    (request, reply) => {
      const { token } = check(SessionRequest, request.body, "body");
      return reply.header("set-cookie", guard.open(token)).code(204).send();
    },
  );
}

function readPolicy(body: unknown): Wanted {
  const { policy, rules, statistics } = check(PolicyRequest, body, "body");
  const options = {
    ...(rules === undefined ? {} : { rules: rules as Rule[] }),
    ...(statistics === undefined ? {} : { statistics: statistics === null ? null : locate(statistics) }),
  };
  // What is in them is checked where everybody's policies are.
  return { policy: policy as PolicyInput | PresetName, options };
}

/** Statistics of the library by name; anything else is a path as the engine sees it. */
function locate(statistics: string): string {
  const lower = statistics.toLowerCase();
  const known = new StatisticsLibrary().entries.find(({ name }) => name === lower);
  return known?.path ?? statistics;
}

function check<T extends z.ZodType>(schema: T, value: unknown, field: string): z.infer<T> {
  const parsed = schema.safeParse(value);
  if (!parsed.success) throw explain(parsed.error, value, field);
  return parsed.data;
}

const answer = ({ revision, engines }: PolicyResult): ApiPolicyResponse => ({
  revision,
  engines: engines.map(({ engineId, step }) => ({ engineId, step: jsonCount(step) })),
});

/** An engine's id may have slashes in it, too. */
function splitKept(kept: string, plane: ControlPlane): StreamOptions["kept"] {
  const known = plane.engines().find(({ engineId }) => kept.startsWith(`${engineId}/`));
  const at = known?.engineId.length ?? kept.indexOf("/");
  return { engineId: kept.slice(0, at), request: kept.slice(at + 1) };
}

function lastEventId(header: string | string[] | undefined): number | undefined {
  return typeof header === "string" && /^\d{1,15}$/.test(header) ? Number(header) : undefined;
}
