/** Something a person gave that cannot be used: which field, its value, and what to do about it. */
export class FieldError extends Error {
  readonly field: string;
  readonly value: unknown;
  readonly remedy: string;

  constructor(field: string, value: unknown, remedy: string, options?: ErrorOptions) {
    super(`${field} = ${typeof value === "string" ? value : JSON.stringify(value)}: ${remedy}`, options);
    this.name = new.target.name;
    this.field = field;
    this.value = value;
    this.remedy = remedy;
  }
}

/** A model configuration that is missing something, or names something not supported. */
export class ModelError extends FieldError {}

/** A statistics file (or a file to import) that is damaged, of another kind, or of another model. */
export class StatisticsError extends FieldError {}
