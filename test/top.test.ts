import { expect, test } from "vitest";
import { ControlClient } from "../packages/cli/src/http/client.ts";
import { counters, joined, requestState, startHttp } from "../packages/control/test/http/helpers.ts";

test("the client that `triattn top` uses speaks to a real control plane", async () => {
  const token = "a-secret-of-enough-characters";
  const { plane, url } = await startHttp({ token });
  const engine = await joined(plane);
  const answering = engine.send({ type: "counters", counters });
  const client = new ControlClient(url, token);
  await answering;
  const watching = (async () => {
    await engine.next("watch");
    await engine.send({ type: "requests", step: 9n, requests: [requestState()], omitted: 0 });
  })();
  const { state, requests } = await client.once(3000);
  await watching;
  expect(state.engines).toMatchObject([{ engineId: "engine-1", connected: true }]);
  expect(requests).toMatchObject([{ engineId: "engine-1", requests: [requestState()] }]);

  const { policy } = state.policy as NonNullable<typeof state.policy>;
  const preview = await client.preview({ policy: { ...policy, budget: 4096 } });
  expect(preview.changes).toEqual([{ path: "policy.budget", from: 2048, to: 4096 }]);
  const changed = client.setPolicy({ policy: { ...policy, budget: 4096 } });
  await engine.acknowledge(2n);
  expect(await changed).toMatchObject({ revision: 2, engines: [{ engineId: "engine-1" }] });
  await expect(client.setPolicy({ policy: { ...policy, budget: 5 } })).rejects.toThrow(/policy\.budget = 5/);
  await expect(new ControlClient(url).state()).rejects.toThrow(/token = missing or another/);
});
