/** The Node API's types, held by the compiler: this file is compiled, never run. */
import {
  type ControlEvent,
  type ControlPlane,
  createControlPlane,
  type PolicyDocument,
  type PolicyInput,
  policy,
  type Rule,
  requestOptions,
  rule,
  type Served,
  serve,
  type TermOptions,
} from "triattn";

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const exactly = <_T extends true>(): void => {};

exactly<Equal<ReturnType<ReturnType<typeof builtFromTerms>["build"]>, PolicyDocument>>();
function builtFromTerms() {
  return policy("mine").budget(1024).term("trig", { offsets: "max", maxOffset: 8 }).term("keydiff");
}
exactly<Equal<keyof TermOptions<"trig">, "weight" | "offsets" | "maxOffset">>();
exactly<Equal<keyof TermOptions<"keydiff">, "weight">>();

// @ts-expect-error: a policy has at least one term
policy("mine").budget(1024).build();
// @ts-expect-error: not a term
policy("mine").term("magic");
// @ts-expect-error: an option of another term
policy("mine").term("keydiff", { offsets: "max" });
// @ts-expect-error: a method of its own sets it
policy("mine").set({ budget: 1 });
// @ts-expect-error: a rule changes something
rule("vip").tags("vip").build();
exactly<Equal<ReturnType<ReturnType<typeof builtRule>["build"]>, Rule>>();
function builtRule() {
  return rule("vip").model("*").budget(0);
}

exactly<Equal<keyof ReturnType<typeof onVllm>, "vllm_xargs">>();
function onVllm() {
  return requestOptions({ budget: 1 });
}
exactly<Equal<keyof ReturnType<typeof onSglang>, "custom_params">>();
function onSglang() {
  return requestOptions({ tags: ["a"], engine: "sglang" });
}
// @ts-expect-error: no such engine
requestOptions({ engine: "other" });

export async function events(plane: ControlPlane): Promise<void> {
  for await (const event of plane.events()) exactly<Equal<typeof event, ControlEvent>>();
  for await (const event of plane.events("counters", "gap")) {
    exactly<Equal<typeof event.type, "counters" | "gap" | "overflow">>();
    if (event.type === "counters") exactly<Equal<typeof event.counters.rounds, bigint>>();
    // @ts-expect-error: not asked for
    if (event.type === "policy") return;
  }
  // @ts-expect-error: no such type
  plane.events("nothing");
}

export async function calls(input: PolicyInput): Promise<Served> {
  const plane = await createControlPlane({
    policy: "keydiff",
    rules: [builtRule().build()],
    http: { port: 0 },
  });
  await plane.setPolicy(input, { rules: [], statistics: null });
  await plane.setPolicy(policy("a", "random").build());
  // @ts-expect-error: neither a preset nor a document
  await plane.setPolicy("magic");
  exactly<Equal<typeof plane.url, string | undefined>>();
  return serve({ model: "m", dashboard: true });
}
