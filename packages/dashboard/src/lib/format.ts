import type { JsonCount } from "@triattn/protocol";

/** A 64-bit count as a number; beyond 2^53 it is rounded, which no display shows. */
export const toNumber = (value: JsonCount): number => Number(value);

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const UNITS = ["", "k", "M", "G", "T", "P"];

/** All digits, grouped: 12,345. */
export const full = (value: number): string => whole.format(value);

/** At most four characters of digits: 9,812 · 12.3k · 1.25M. */
export function compact(value: number): string {
  if (!Number.isFinite(value)) return "–";
  if (Math.abs(value) < 10_000) return whole.format(value);
  let unit = 0;
  let scaled = value;
  while (Math.abs(scaled) >= 999.5 && unit < UNITS.length - 1) {
    scaled /= 1000;
    unit += 1;
  }
  return `${scaled.toPrecision(3)}${UNITS[unit]}`;
}

/** A rate a second: two digits behind the point below 10, none from 100. */
export function rate(value: number): string {
  if (!Number.isFinite(value)) return "–";
  if (value >= 10_000) return compact(value);
  if (value >= 100) return whole.format(value);
  return value >= 10 ? value.toFixed(1) : value === 0 ? "0" : value.toFixed(2);
}

/** A share of 1 in percent: 4.2 %, 87 %. A share that is not zero never reads 0 %. */
export function percent(share: number): string {
  if (!Number.isFinite(share)) return "–";
  const value = share * 100;
  if (value > 0 && value < 0.1) return "<0.1 %";
  return `${value < 10 && value !== 0 ? value.toFixed(1) : value.toFixed(0)} %`;
}

/** Seconds as a person says them: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min. */
export function seconds(value: number): string {
  if (value < 1) return `${Math.max(0, value).toFixed(1)} s`;
  const s = Math.round(value);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

/** The clock of a time, in the reader's zone: 14:03:27. */
export function clock(time: string | number): string {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return "–";
  return [date.getHours(), date.getMinutes(), date.getSeconds()]
    .map((n) => String(n).padStart(2, "0"))
    .join(":");
}

/** Day and clock: 2026-11-25 14:03:27. */
export function dayAndClock(time: string): string {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return "–";
  const two = (n: number) => String(n).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(time)}`;
}

/** A model's name without the directories of its path; a hub's OWNER/NAME stays. */
export const modelName = (name: string): string =>
  /^[./~]/.test(name) ? (name.split("/").filter(Boolean).at(-1) ?? name) : name;

/** One of something, or several: plural(1, "request") = "1 request". */
export const plural = (count: number, noun: string): string =>
  `${full(count)} ${noun}${count === 1 ? "" : "s"}`;
