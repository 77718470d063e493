export * from "./codec.ts";
export * from "./http.ts";
export * from "./messages.ts";
export * from "./policy.ts";
export * from "./presets.ts";
export * from "./reference-env.ts";
