import { ConfigError } from "@triattn/control";

export interface Gpu {
  readonly name: string;
  /** As the driver reports it. */
  readonly memoryBytes: number;
  /** Bytes a second, from the maker's data sheet; null where only the memory is known. */
  readonly bandwidth: number | null;
  /** Dense bfloat16 operations a second with float32 accumulation, from the maker's data sheet. */
  readonly flops: number | null;
}

const MIB = 2 ** 20;
const gpu = (name: string, mebibytes: number, gigabytesPerSecond: number, teraflops: number): Gpu => ({
  name,
  memoryBytes: mebibytes * MIB,
  bandwidth: gigabytesPerSecond * 1e9,
  flops: teraflops * 1e12,
});

export const gpus: Readonly<Record<string, Gpu>> = {
  h200: gpu("NVIDIA H200", 143_771, 4_800, 989),
  h100: gpu("NVIDIA H100 SXM", 81_559, 3_350, 989),
  "h100-nvl": gpu("NVIDIA H100 NVL", 95_830, 3_900, 835),
  "h100-pcie": gpu("NVIDIA H100 PCIe", 81_559, 2_000, 756),
  h20: gpu("NVIDIA H20", 97_871, 4_000, 148),
  b200: gpu("NVIDIA B200", 183_359, 8_000, 2_250),
  a100: gpu("NVIDIA A100 80GB", 81_920, 2_039, 312),
  "a100-40g": gpu("NVIDIA A100 40GB", 40_960, 1_555, 312),
  a40: gpu("NVIDIA A40", 46_068, 696, 150),
  a10: gpu("NVIDIA A10", 23_028, 600, 125),
  l40s: gpu("NVIDIA L40S", 46_068, 864, 362),
  l40: gpu("NVIDIA L40", 46_068, 864, 181),
  l4: gpu("NVIDIA L4", 23_034, 300, 121),
  "rtx-pro-6000": gpu("NVIDIA RTX PRO 6000", 97_887, 1_792, 504),
  "rtx-6000-ada": gpu("NVIDIA RTX 6000 Ada", 49_140, 960, 364),
  a6000: gpu("NVIDIA RTX A6000", 49_140, 768, 155),
  "5090": gpu("NVIDIA GeForce RTX 5090", 32_607, 1_792, 210),
  "4090": gpu("NVIDIA GeForce RTX 4090", 24_564, 1_008, 165),
  "3090": gpu("NVIDIA GeForce RTX 3090", 24_576, 936, 71),
};

const plain = (text: string): string =>
  text
    .toLowerCase()
    .replaceAll(/nvidia|geforce|sxm\d?|80gb?|[^a-z0-9]/g, "")
    .replace(/^rtx(?=\d{4}$)/, "");

/** A GPU by its name here, `rtx4090` and `RTX-4090` alike, or as the driver names it. Throws ConfigError. */
export function findGpu(name: string): Gpu {
  const asked = plain(name);
  const exact = Object.entries(gpus).find(([key]) => plain(key) === asked);
  if (exact !== undefined) return exact[1];
  // A driver says more: NVIDIA H100 80GB HBM3, NVIDIA A100-SXM4-40GB. The longest name in it is the card.
  const within = Object.entries(gpus)
    .filter(([key]) => /nvidia/i.test(name) && asked.includes(plain(key)))
    .sort(([a], [b]) => plain(b).length - plain(a).length);
  if (within[0] !== undefined) return within[0][1];
  throw new ConfigError("--gpu", name, `one of ${Object.keys(gpus).join(", ")}; or --vram with --bandwidth`);
}

const UNITS: Readonly<Record<string, number>> = {
  "": 1,
  k: 1e3,
  m: 1e6,
  g: 1e9,
  t: 1e12,
  ki: 2 ** 10,
  mi: 2 ** 20,
  gi: 2 ** 30,
  ti: 2 ** 40,
};

/** A quantity such as 24GiB, 1008GB/s or 165TFLOPS. Throws ConfigError. */
export function quantity(flag: string, text: string, unit: "B" | "B/s" | "FLOPS"): number {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgt]i?|)(b\/s|b|flops|)$/i.exec(text.trim());
  const factor = UNITS[(match?.[2] ?? "?").toLowerCase()];
  if (match === null || factor === undefined || Number(match[1]) <= 0) {
    const example = { B: "24GiB", "B/s": "1008GB/s", FLOPS: "165TFLOPS" }[unit];
    throw new ConfigError(flag, text, `a number with its unit, such as ${example}`);
  }
  return Number(match[1]) * factor;
}

/** A number of tokens, 32k being 32 × 1,024. Throws ConfigError. */
export function tokenCount(flag: string): (text: string) => number {
  return (text) => {
    const match = /^(\d+)(k?)$/i.exec(text);
    const value = Number(match?.[1]) * (match?.[2] ? 1024 : 1);
    if (match === null || value < 1 || value > 2 ** 30) {
      throw new ConfigError(flag, text, "a whole number of tokens of at least 1, such as 32768 or 32k");
    }
    return value;
  };
}
