import { execFile } from "node:child_process";
import { bad, type Finding, ok, warn } from "./finding.ts";

const TIMEOUT_MS = 15_000;
const BUSY_SHARE = 0.1;
const FIELDS = "name,memory.total,memory.used,driver_version,compute_cap,mig.mode.current";

export interface GpuQuery {
  /** What nvidia-smi wrote; undefined where it is not there. */
  readonly csv: string | undefined;
  readonly error?: string | undefined;
}

export function queryGpus(environment: NodeJS.ProcessEnv = process.env): Promise<GpuQuery> {
  const args = [`--query-gpu=${FIELDS}`, "--format=csv,noheader,nounits"];
  return new Promise((resolve) => {
    execFile("nvidia-smi", args, { env: environment, timeout: TIMEOUT_MS }, (error, stdout, stderr) => {
      if (error === null) return resolve({ csv: stdout });
      if (error.code === "ENOENT") return resolve({ csv: undefined });
      resolve({ csv: undefined, error: (stdout || stderr || error.message).trim().split("\n")[0] });
    });
  });
}

/** GPUs as the driver sees them. `needed`: whether the engine is one for GPUs. */
export function gpus({ csv, error }: GpuQuery, needed: boolean): Finding[] {
  if (error !== undefined) {
    return [
      bad("gpu", `nvidia-smi fails: ${error}`, "see that the driver is loaded and matches its library"),
    ];
  }
  if (csv === undefined) {
    if (!needed) return [ok("gpu", "none, and this engine is built for CPUs")];
    return [
      bad(
        "gpu",
        "nvidia-smi is not there",
        "install the driver; in a container, pass the GPUs in (--gpus all)",
      ),
    ];
  }
  const rows = csv.trim().split("\n").filter(Boolean);
  if (rows.length === 0)
    return [bad("gpu", "the driver sees no GPU", "see that the cards are there and not hidden")];
  return rows.map((row) => {
    const [name, total, used, driver, capability] = row.split(",").map((cell) => cell.trim());
    const share = Number(used) / Number(total);
    const found = `${name}, ${(Number(total) / 1024).toFixed(1)} GiB, compute ${capability}, driver ${driver}`;
    if (Number(capability) < 8) {
      return warn(
        "gpu",
        found,
        "older than Ampere: no bfloat16 and no FlashAttention; nothing here was tried on it",
      );
    }
    if (share > BUSY_SHARE) {
      const taken = `${(Number(used) / 1024).toFixed(1)} GiB in use`;
      return warn(
        "gpu",
        `${found}, ${taken}`,
        "the engine counts on the whole card: end what uses it, or lower --gpu-memory-utilization",
      );
    }
    return ok("gpu", found);
  });
}
