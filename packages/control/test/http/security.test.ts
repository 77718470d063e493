import { request } from "node:http";
import { REQUEST_HEADER } from "@triattn/protocol";
import { describe, expect, test } from "vitest";
import { ConfigError, createControlPlane, EndpointError } from "../../src/index.ts";
import { silent } from "../helpers.ts";
import { body, json, Reader, startHttp } from "./helpers.ts";

const TOKEN = "0123456789abcdef0123456789abcdef";

/** `fetch` does not let a Host header through. */
function send(url: string, method: string, headers: Record<string, string>): Promise<number> {
  return new Promise((resolve, reject) => {
    const sent = request(url, { method, headers }, (response) => {
      response.resume();
      resolve(response.statusCode ?? 0);
    });
    sent.on("error", reject);
    sent.end(method === "GET" ? undefined : "{}");
  });
}

describe("options", () => {
  const start = (http: object) => createControlPlane({ logger: silent, http });

  test("an address that others reach needs a token", async () => {
    for (const host of ["0.0.0.0", "::", "192.0.2.1", "example.net", "127.0.0.1.example.net"]) {
      const error = await start({ host, port: 0 }).catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(ConfigError);
      expect(error).toMatchObject({ field: "http.host", value: host, remedy: /give a token/ });
    }
    const plane = await start({ host: "0.0.0.0", port: 0, token: TOKEN });
    expect(plane.url).toMatch(/^http:\/\/0\.0\.0\.0:\d+$/);
    await plane.close();
  });

  test("a token that could be guessed, or not be sent; it is not told", async () => {
    for (const token of ["short", "", `${TOKEN} ${TOKEN}`, `${TOKEN}é`]) {
      const error = await start({ port: 0, token }).catch((reason: unknown) => reason);
      expect(error).toMatchObject({ field: "http.token", value: `${token.length} characters` });
    }
  });

  test("a port that is taken, or is none", async () => {
    const { url } = await startHttp();
    const port = Number(new URL(url).port);
    const error = await start({ port }).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(EndpointError);
    expect(error).toMatchObject({ field: "http", value: `127.0.0.1:${port}`, remedy: /in use/ });
    await expect(start({ port: 70000 })).rejects.toMatchObject({ field: "http.port" });
  });
});

test("every answer says what a page may do", async () => {
  const { url } = await startHttp();
  for (const path of ["/api/state", "/nothing", "/api/events?kept=x"]) {
    const { headers } = await fetch(`${url}${path}`);
    const policy = headers.get("content-security-policy") ?? "";
    expect(policy).toMatch(/default-src 'none'/);
    expect(policy).not.toMatch(/unsafe|https?:|\*/);
    expect(headers.get("x-content-type-options")).toBe("nosniff");
    expect(headers.get("access-control-allow-origin")).toBeNull();
  }
  const stream = await fetch(`${url}/api/events`);
  expect(stream.headers.get("content-security-policy")).toMatch(/default-src 'none'/);
  await stream.body?.cancel();
});

test("names of other sites are not answered (DNS rebinding)", async () => {
  const { url } = await startHttp({ allowedHosts: ["triattn.example.net"] });
  const { port } = new URL(url);
  const states: [host: string, status: number][] = [
    [`127.0.0.1:${port}`, 200],
    [`localhost:${port}`, 200],
    [`[::1]:${port}`, 200],
    ["triattn.example.net", 200],
    [`TRIATTN.example.net:${port}`, 200],
    [`evil.example:${port}`, 403],
    [`localhost.evil.example:${port}`, 403],
    [`127.0.0.1.evil.example:${port}`, 403],
    ["localhost:1@evil.example", 403],
    ["[::1", 403],
  ];
  for (const [host, status] of states)
    expect([host, await send(`${url}/api/state`, "GET", { host })]).toEqual([host, status]);
});

test("pages of other sites change nothing (CSRF), and see nothing", async () => {
  const { plane, url } = await startHttp();
  const good = { "content-type": "application/json", [REQUEST_HEADER]: "1" };
  const put = (headers: Record<string, string>) => send(`${url}/api/policy`, "PUT", headers);
  // 400: let through, and then the empty body is refused.
  expect(await put(good)).toBe(400);
  expect(await put({ ...good, origin: url })).toBe(400);
  expect(await put({ ...good, origin: url, "sec-fetch-site": "same-origin" })).toBe(400);
  expect(await put({ "content-type": "application/json" })).toBe(403);
  expect(await put({ ...good, origin: "http://evil.example" })).toBe(403);
  expect(await put({ ...good, origin: "null" })).toBe(403);
  expect(await put({ ...good, origin: `${url}0` })).toBe(403);
  expect(await put({ ...good, "sec-fetch-site": "cross-site" })).toBe(403);
  expect(await send(`${url}/api/state`, "GET", { "sec-fetch-site": "same-site" })).toBe(403);
  expect(await send(`${url}/api/state`, "GET", { origin: "http://evil.example" })).toBe(403);
  // What a form can send.
  expect(await put({ [REQUEST_HEADER]: "1", "content-type": "text/plain" })).toBe(400);
  expect(plane.policy?.revision).toBe(1);
});

describe("with a token", () => {
  test("nothing of the API is told without", async () => {
    const { url } = await startHttp({ token: TOKEN });
    const paths = ["/api/state", "/api/events", "/api/policy/history", "/%61pi/state", "/api/state?x=1"];
    for (const path of paths) {
      const response = await fetch(`${url}${path}`);
      expect([path, response.status]).toEqual([path, 401]);
      expect(response.headers.get("www-authenticate")).toBe("Bearer");
      expect((await body(response)).error).toMatchObject({ field: "authorization", value: "missing" });
    }
    const bearer = (token: string) =>
      fetch(`${url}/api/state`, { headers: { authorization: `Bearer ${token}` } });
    expect((await bearer(TOKEN)).status).toBe(200);
    expect((await bearer(`${TOKEN}0`)).status).toBe(401);
    expect((await bearer(TOKEN.slice(1))).status).toBe(401);
    expect((await fetch(`${url}/api/policy`, json("PUT", { policy: "keydiff" }))).status).toBe(401);
  });

  test("a session's cookie stands for it", async () => {
    const { url } = await startHttp({ token: TOKEN });
    const wrong = await fetch(`${url}/api/session`, json("POST", { token: "wrong" }));
    expect(wrong.status).toBe(401);
    expect(wrong.headers.get("set-cookie")).toBeNull();
    expect(await wrong.text()).not.toContain(TOKEN);
    const right = await fetch(`${url}/api/session`, json("POST", { token: TOKEN }));
    expect(right.status).toBe(204);
    const set = right.headers.get("set-cookie") ?? "";
    expect(set).toMatch(/; HttpOnly; SameSite=Strict/);
    const [cookie = ""] = set.split(";");
    expect(cookie).not.toContain(TOKEN);
    expect((await fetch(`${url}/api/state`, { headers: { cookie } })).status).toBe(200);
    expect((await fetch(`${url}/api/state`, { headers: { cookie: `${cookie}x` } })).status).toBe(401);
    const stream = await Reader.open(`${url}/api/events`, { cookie });
    await stream.next("state");
    // A page of another site has the cookie sent along, at most, but not the header.
    expect(await send(`${url}/api/policy`, "PUT", { cookie, "content-type": "application/json" })).toBe(403);
  });

  test("it is not guessed by trying", async () => {
    const { url } = await startHttp({ token: TOKEN });
    const tries = Array.from({ length: 12 }, () => fetch(`${url}/api/session`, json("POST", { token: "x" })));
    const states = (await Promise.all(tries)).map(({ status }) => status);
    expect(states.filter((status) => status === 429).length).toBe(2);
  });
});

test("too many requests are answered 429, with when to come again", async () => {
  const { url } = await startHttp({ maxRequests: 20 });
  const states = await Promise.all(Array.from({ length: 25 }, () => fetch(`${url}/api/state`)));
  const refused = states.filter(({ status }) => status === 429);
  expect(refused).toHaveLength(5);
  expect(Number(refused[0]?.headers.get("retry-after"))).toBeGreaterThan(0);
  expect((await body(refused[0] as Response)).error).toMatchObject({ field: "requests", remedy: /^wait / });
});
