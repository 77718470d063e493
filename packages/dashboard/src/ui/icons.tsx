import type { ComponentChildren } from "preact";

interface IconProps {
  readonly size?: number;
}

function icon(paths: ComponentChildren) {
  return ({ size = 16 }: IconProps) => (
    <svg
      width={size}
      height={size}
      viewBox="0 0 16 16"
      fill="none"
      stroke="currentColor"
      stroke-width="1.5"
      stroke-linecap="round"
      stroke-linejoin="round"
      aria-hidden="true"
    >
      {paths}
    </svg>
  );
}

export const Sun = icon(
  <>
    <circle cx="8" cy="8" r="3" />
    <path d="M8 1.5v1M8 13.5v1M1.5 8h1M13.5 8h1M3.4 3.4l.7.7M11.9 11.9l.7.7M3.4 12.6l.7-.7M11.9 4.1l.7-.7" />
  </>,
);
export const Moon = icon(<path d="M13.5 9.6A6 6 0 0 1 6.4 2.5a6 6 0 1 0 7.1 7.1Z" />);
export const Screen = icon(
  <>
    <rect x="1.5" y="2.5" width="13" height="8.5" rx="1.5" />
    <path d="M5.5 14h5" />
  </>,
);
export const Up = icon(<path d="M8 13V3M4 7l4-4 4 4" />);
export const Down = icon(<path d="M8 3v10M4 9l4 4 4-4" />);
export const Close = icon(<path d="M3.5 3.5l9 9M12.5 3.5l-9 9" />);
export const Plus = icon(<path d="M8 3v10M3 8h10" />);
export const Back = icon(<path d="M6 3 2.5 6.5 6 10M2.5 6.5H10a3.5 3.5 0 0 1 0 7H7" />);
