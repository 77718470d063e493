import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type ControlPlane, createControlPlane } from "@triattn/control";
import { expect, test } from "vitest";
import { LoadedEngine } from "../bench-control/engine.ts";
import { grafana } from "../docs/grafana.ts";

const installed = spawnSync("prometheus", ["--version"]).status === 0;

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  return port;
}

/** A real Prometheus that scrapes a control plane each second. */
async function scraping(
  plane: ControlPlane,
  directory: string,
): Promise<{ child: ChildProcess; url: string }> {
  const config = join(directory, "prometheus.json");
  const job = { job_name: "triattn", static_configs: [{ targets: [new URL(plane.url as string).host] }] };
  writeFileSync(config, JSON.stringify({ global: { scrape_interval: "1s" }, scrape_configs: [job] }));
  const address = `127.0.0.1:${await freePort()}`;
  const flags = [
    `--config.file=${config}`,
    `--storage.tsdb.path=${directory}`,
    `--web.listen-address=${address}`,
  ];
  return { child: spawn("prometheus", flags, { stdio: "ignore" }), url: `http://${address}` };
}

async function query(url: string, expression: string): Promise<unknown[]> {
  const response = await fetch(`${url}/api/v1/query?query=${encodeURIComponent(expression)}`);
  const { status, data, error } = (await response.json()) as {
    status: string;
    data: { result: unknown[] };
    error?: string;
  };
  if (status !== "success") throw new Error(`${expression}: ${error}`);
  return data.result;
}

test.skipIf(!installed)(
  "a real Prometheus scrapes them, and each panel of the dashboard has something to show (skipped where Prometheus is not installed)",
  async () => {
    const directory = mkdtempSync(join(tmpdir(), "triattn-prometheus-"));
    const rules = [{ name: "vip", match: { tags: ["vip"] }, budget: 4096 }];
    const plane = await createControlPlane({ policy: "random", rules, http: { port: 0 } });
    const engine = new LoadedEngine(plane.endpoint, { rounds: 50, requests: 10 });
    const { child, url } = await scraping(plane, directory);
    try {
      const fresh = async () =>
        (await query(url, "triattn:compactions_total > 100").catch(() => [])).length > 0;
      for (let tries = 0; tries < 200 && !(await fresh()); tries++) await sleep(100);
      await sleep(2000);
      const empty: string[] = [];
      for (const panel of grafana().panels as { targets?: { expr: string }[] }[]) {
        for (const { expr } of panel.targets ?? []) {
          const plain = expr.replaceAll("$__rate_interval", "5s").replaceAll(/"\$(model|engine)"/g, '".*"');
          if ((await query(url, plain)).length === 0) empty.push(plain);
        }
      }
      expect(empty).toEqual([]);
    } finally {
      child.kill("SIGKILL");
      await once(child, "exit");
      engine.close();
      await plane.close();
      rmSync(directory, { recursive: true, force: true });
    }
  },
  60_000,
);
