import type { ApiError } from "@triattn/protocol";
import { ControlPlaneClosed, FieldError, PolicyRefused, PolicyUnacknowledged } from "../errors.ts";
import { show } from "../stats/errors.ts";

/** What a request got wrong, and the status that says so. */
export class HttpError extends FieldError {
  readonly status: number;

  constructor(status: number, field: string, value: unknown, remedy: string) {
    super(field, value, remedy);
    this.status = status;
  }
}

interface FastifyError extends Error {
  readonly statusCode?: number;
}

/** Status of an error, and the body that explains it. What nobody foresaw is not explained to others. */
export function describeError(error: unknown): { status: number; body: ApiError } {
  const status = statusOf(error);
  if (status >= 500 && !(error instanceof FieldError) && !(error instanceof ControlPlaneClosed)) {
    return { status, body: apiError("an error that nobody foresaw; the control plane's log has it") };
  }
  const message = (error as Error).message;
  if (!(error instanceof FieldError)) return { status, body: apiError(message) };
  const value = error.value === undefined ? null : show(error.value);
  const text = error instanceof PolicyRefused ? `${error.engineId} refused it: ${error.reason}` : message;
  return {
    status,
    body: apiError(clip(text), error.field, value, error.remedy),
  };
}

export function apiError(
  message: string,
  field: string | null = null,
  value: string | null = null,
  remedy: string | null = null,
): ApiError {
  return { error: { message, field, value, remedy } };
}

/** A hostile value is not sent back whole. */
const clip = (text: string): string => (text.length > 1000 ? `${text.slice(0, 1000)}…` : text);

function statusOf(error: unknown): number {
  if (error instanceof HttpError) return error.status;
  if (error instanceof PolicyRefused) return 422;
  if (error instanceof PolicyUnacknowledged) return 504;
  if (error instanceof ControlPlaneClosed) return 503;
  if (error instanceof FieldError) return 400;
  return (error as FastifyError).statusCode ?? 500;
}
