import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { ConfigError, checkHttp, type HttpOptions } from "@triattn/control";
import { EnvironmentError } from "../errors.ts";
import { cloneRoot, dashboardDirectory } from "../package.ts";

export interface DashboardOptions {
  /**
   * Serves the dashboard, the HTTP API and metrics: true at 127.0.0.1:9470, or where `host:port`, `host` or `port`
   * says (0 takes a free one). Default: not.
   */
  readonly dashboard?: boolean | string | HttpOptions | undefined;
  /** A file that holds the token; else the environment's TRIATTN_HTTP_TOKEN. */
  readonly dashboardToken?: string | undefined;
}

/** Secret of the HTTP API. Never in the arguments, which every user of the machine can see. */
export const TOKEN_VARIABLE = "TRIATTN_HTTP_TOKEN";

/** How to serve; undefined when nobody asked for it. Throws ConfigError. */
export function readDashboard(
  { dashboard, dashboardToken }: DashboardOptions,
  environment: NodeJS.ProcessEnv,
): HttpOptions | undefined {
  if (dashboard === undefined || dashboard === false) {
    if (dashboardToken === undefined) return undefined;
    throw new ConfigError(
      "--dashboard-token",
      dashboardToken,
      "give --dashboard, too: nothing is served without",
    );
  }
  const given: HttpOptions =
    typeof dashboard === "object" ? dashboard : dashboard === true ? {} : readAddress(dashboard);
  const token = given.token ?? readToken(dashboardToken, environment);
  const options = { ...given, token };
  checkHttp(options);
  return options;
}

/** The page's directory: as it came with the package, or built now, in a clone. Throws EnvironmentError. */
export async function builtDashboard(): Promise<string | undefined> {
  if (cloneRoot === undefined) return dashboardDirectory();
  const script = join(cloneRoot, "packages", "dashboard", "build.ts");
  try {
    await promisify(execFile)(process.execPath, ["--import", "tsx", script, "--if-needed"], {
      cwd: cloneRoot,
    });
  } catch (cause) {
    const output = String((cause as { stderr?: unknown }).stderr ?? cause).trim();
    const remedy = `install the clone's packages (npx -y pnpm@12 install), then pnpm run build:dashboard:\n${output.slice(-2000)}`;
    throw new EnvironmentError("--dashboard", "the page cannot be built", remedy, { cause });
  }
  return dashboardDirectory();
}

function readAddress(text: string): { host?: string; port?: number } {
  const [, bracketed, plain, port] = /^(?:\[([0-9a-f:.]+)\]|([^:[\]/\s]*))(?::(\d{1,5}))?$/i.exec(text) ?? [];
  const host = bracketed ?? plain;
  if (host === undefined) {
    throw new ConfigError("--dashboard", text, "host:port, such as 127.0.0.1:9470 or [::1]:9470");
  }
  if (port === undefined && /^\d{1,5}$/.test(host)) return { port: Number(host) };
  return { ...(host === "" ? {} : { host }), ...(port === undefined ? {} : { port: Number(port) }) };
}

function readToken(file: string | undefined, environment: NodeJS.ProcessEnv): string | undefined {
  if (file === undefined) return environment[TOKEN_VARIABLE]?.trim() || undefined;
  try {
    return readFileSync(file, "utf8").trim();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new ConfigError("--dashboard-token", file, `a file that can be read (${code})`, { cause: error });
  }
}
