import type {
  ApiError,
  ApiHistory,
  ApiPolicyRequest,
  ApiPolicyResponse,
  ApiPreview,
  ApiRollbackRequest,
  REQUEST_HEADER,
} from "@triattn/protocol";
import { authorization, refused } from "./token.ts";

const HEADER: typeof REQUEST_HEADER = "x-triattn-request";

/** An answer that is not 2xx, or no answer. */
export class RequestFailed extends Error {
  override name = "RequestFailed";
  /** 0: the control plane could not be reached. */
  readonly status: number;
  readonly field: string | null;
  readonly value: string | null;
  readonly remedy: string | null;

  constructor(status: number, { message, field, value, remedy }: ApiError["error"]) {
    super(message);
    this.status = status;
    this.field = field;
    this.value = value;
    this.remedy = remedy;
  }
}

async function ask<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  const plain = (message: string) => ({ message, field: null, value: null, remedy: null });
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      headers: {
        accept: "application/json",
        ...authorization(),
        ...(method === "GET" ? {} : { [HEADER]: "1", "content-type": "application/json" }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(signal === undefined ? {} : { signal }),
      cache: "no-store",
    });
  } catch (error) {
    if ((error as Error).name === "AbortError") throw error;
    throw new RequestFailed(0, plain("the control plane cannot be reached"));
  }
  const json = (await response.json().catch(() => undefined)) as unknown;
  if (response.ok) return json as T;
  if (response.status === 401) refused();
  const { error } = (json ?? {}) as Partial<ApiError>;
  throw new RequestFailed(
    response.status,
    error ?? plain(`the control plane answered ${response.status} ${response.statusText}`.trim()),
  );
}

/** What the page asks the control plane for, or to do. Each rejects with RequestFailed. */
export const api = {
  history: () => ask<ApiHistory>("GET", "/api/policy/history"),
  preview: (request: ApiPolicyRequest, signal?: AbortSignal) =>
    ask<ApiPreview>("POST", "/api/policy/preview", request, signal),
  setPolicy: (request: ApiPolicyRequest) => ask<ApiPolicyResponse>("PUT", "/api/policy", request),
  rollBack: (revision: number) =>
    ask<ApiPolicyResponse>("POST", "/api/policy/rollback", { revision } satisfies ApiRollbackRequest),
};
