/**
 * A control plane without an engine: policies and rules put together, put in force, taken back; its HTTP API asked.
 *
 *     node --import tsx examples/policies.ts
 */
import { type ApiState, createControlPlane, policy, rule } from "triattn";

const distinct = policy("distinct").budget(1024).term("keydiff").pin({ window: 64 }).build();
const wide = policy("wide", "triattention").budget(4096).set({ selection: "union" }).build();

const rules = [
  // Requests that carry the tag are never compressed.
  rule("vip").tags("vip").budget(0).build(),
  // Background work gets little, and the cheapest way to choose what to keep.
  rule("batch").priority({ min: 10 }).budget(512).policy("streaming").build(),
  rule("small").model("*135M*").policy(wide).build(),
];

// Port 0 takes a free one; the default is 9470.
const plane = await createControlPlane({ policy: distinct, rules, http: { port: 0 } });
try {
  const changes = plane.events("policy");
  await plane.setPolicy(policy("distinct", distinct).budget(512).build());
  const { value } = await changes.next();
  if (value?.type === "policy") console.log(`revision ${value.revision}: budget ${value.policy.budget}`);

  await plane.rollback();
  const state = (await (await fetch(`${plane.url}/api/state`)).json()) as ApiState;
  console.log(`revision ${state.policy?.revision}: budget ${state.policy?.policy.budget}`);
  console.log(`rules: ${state.policy?.rules.map(({ name }) => name).join(", ")}`);

  // What cannot be is refused before it reaches an engine, and says what to do.
  await plane.setPolicy(policy("tight", distinct).budget(10).build());
} catch (error) {
  console.log((error as Error).message);
} finally {
  await plane.close();
}
