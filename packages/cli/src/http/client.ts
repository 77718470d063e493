import { ConfigError, FieldError } from "@triattn/control";
import {
  type ApiError,
  type ApiPolicyRequest,
  type ApiPolicyResponse,
  type ApiPreview,
  type ApiRequests,
  type ApiState,
  type ApiStream,
  DEFAULT_HTTP_PORT,
  REQUEST_HEADER,
} from "@triattn/protocol";
import { EventSourceParserStream } from "eventsource-parser/stream";
import { EnvironmentError } from "../errors.ts";

export const DEFAULT_URL = `http://127.0.0.1:${DEFAULT_HTTP_PORT}`;

/** One thing that a stream of the control plane says. */
export type StreamMessage = {
  readonly [K in keyof ApiStream]: { readonly type: K; readonly data: ApiStream[K] };
}[keyof ApiStream];

/** The control plane refused a request: field, value and remedy as it gave them. */
export class ApiRefused extends FieldError {
  readonly status: number;

  constructor(status: number, { error }: ApiError) {
    super(error.field ?? "request", error.value ?? String(status), error.remedy ?? error.message);
    this.status = status;
  }
}

const TIMEOUT_MS = 10_000;

/** The base of an address such as `127.0.0.1:9470` or `https://host/`. Throws ConfigError. */
export function baseUrl(text: string): string {
  try {
    const url = new URL(/^https?:\/\//.test(text) ? text : `http://${text}`);
    if (url.username === "" && url.password === "") return url.href.replace(/\/$/, "");
  } catch {
    // Said below.
  }
  throw new ConfigError("url", text, `an address of a control plane, such as ${DEFAULT_URL}`);
}

/** Speaks to the HTTP API of a control plane. Throws EnvironmentError when nobody answers, ApiRefused for a refusal. */
export class ControlClient {
  readonly url: string;
  readonly #token: string | undefined;

  constructor(url: string, token?: string) {
    this.url = baseUrl(url);
    this.#token = token;
  }

  state(): Promise<ApiState> {
    return this.#json("GET", "/api/state");
  }

  setPolicy(request: ApiPolicyRequest): Promise<ApiPolicyResponse> {
    return this.#json("PUT", "/api/policy", request, 60_000);
  }

  preview(request: ApiPolicyRequest): Promise<ApiPreview> {
    return this.#json("POST", "/api/policy/preview", request);
  }

  /** What happens from now on, each engine's requests included. Ends when the control plane or `signal` does. */
  async *stream(signal: AbortSignal): AsyncGenerator<StreamMessage> {
    const response = await this.#ask("GET", "/api/events?requests=1", undefined, signal);
    if (response.body === null) return;
    const messages = response.body
      .pipeThrough(new TextDecoderStream())
      .pipeThrough(new EventSourceParserStream());
    for await (const { event, data } of messages) {
      if (event === "state" || event === "requests" || event === "kept" || event === "events") {
        yield { type: event, data: JSON.parse(data) } as StreamMessage;
      }
    }
  }

  /** The state, and what each connected engine says of its requests within `waitMs`. */
  async once(waitMs: number): Promise<{ state: ApiState; requests: ApiRequests[] }> {
    const found = new Map<string, ApiRequests>();
    let state = await this.state();
    const connected = () => state.engines.filter((engine) => engine.connected);
    if (connected().length === 0) return { state, requests: [] };
    const stop = AbortSignal.timeout(waitMs);
    try {
      for await (const message of this.stream(stop)) {
        if (message.type === "state") state = message.data;
        if (message.type === "requests") found.set(message.data.engineId, message.data);
        if (connected().every(({ engineId }) => found.has(engineId))) break;
      }
    } catch (error) {
      // An engine that does not answer in time is shown without its requests.
      if (!stop.aborted) throw error;
    }
    return { state, requests: [...found.values()] };
  }

  async #json<T>(method: string, path: string, body?: unknown, timeoutMs = TIMEOUT_MS): Promise<T> {
    const response = await this.#ask(method, path, body, AbortSignal.timeout(timeoutMs));
    return (await response.json()) as T;
  }

  async #ask(method: string, path: string, body: unknown, signal: AbortSignal): Promise<Response> {
    let response: Response;
    try {
      response = await fetch(`${this.url}${path}`, {
        method,
        signal,
        headers: {
          ...(this.#token === undefined ? {} : { authorization: `Bearer ${this.#token}` }),
          ...(body === undefined ? {} : { "content-type": "application/json" }),
          ...(method === "GET" ? {} : { [REQUEST_HEADER]: "1" }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
    } catch (cause) {
      if (signal.aborted) throw cause;
      const { code, message } = ((cause as Error).cause ?? cause) as NodeJS.ErrnoException;
      throw new EnvironmentError(
        "url",
        this.url,
        `nobody answers (${code ?? message}): start \`triattn serve --dashboard\`, or name the address of its HTTP API`,
        { cause },
      );
    }
    if (response.ok) return response;
    throw await refusal(response, this.url);
  }
}

async function refusal(response: Response, url: string): Promise<Error> {
  if (response.status === 401) {
    await response.body?.cancel();
    return new ConfigError(
      "token",
      "missing or another",
      `give the token of ${url} by --token-file or TRIATTN_HTTP_TOKEN`,
    );
  }
  const text = await response.text();
  try {
    const body = JSON.parse(text) as ApiError;
    if (typeof body.error?.message === "string") return new ApiRefused(response.status, body);
  } catch {
    // Not the control plane.
  }
  return new EnvironmentError(
    "url",
    url,
    `answers ${response.status}, and is not a control plane of triattn`,
  );
}
