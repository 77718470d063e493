/** Something a person gave that cannot be used: which field, its value, and what to do about it. */
export class FieldError extends Error {
  readonly field: string;
  readonly value: unknown;
  readonly remedy: string;

  constructor(field: string, value: unknown, remedy: string, options?: ErrorOptions) {
    super(`${field} = ${show(value)}: ${remedy}`, options);
    this.name = new.target.name;
    this.field = field;
    this.value = value;
    this.remedy = remedy;
  }
}

const LONGEST = 1000;

/** A value for people, whatever it is. */
export function show(value: unknown): string {
  const text = typeof value === "string" ? value : (json(value) ?? String(value));
  return text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text;
}

function json(value: unknown): string | undefined {
  try {
    return JSON.stringify(value, (_key, item) => (typeof item === "bigint" ? String(item) : item));
  } catch {
    // It contains itself.
    return undefined;
  }
}

/** A model configuration that is missing something, or names something not supported. */
export class ModelError extends FieldError {}

/** A statistics file (or a file to import) that is damaged, of another kind, or of another model. */
export class StatisticsError extends FieldError {}
