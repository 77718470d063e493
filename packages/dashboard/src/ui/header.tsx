import icon from "../assets/icon.svg";
import { full } from "../lib/format.ts";
import { route, type Theme, theme } from "../state/page.ts";
import { connection, rows, state } from "../state/store.ts";
import { Moon, Screen, Sun } from "./icons.tsx";

const VIEWS = [
  { view: "overview", title: "Overview" },
  { view: "requests", title: "Requests" },
  { view: "policy", title: "Policy" },
  { view: "events", title: "Events" },
] as const;

export function Header() {
  const current = route.value.view;
  return (
    <header class="bar">
      <h1 class="brand">
        <img src={icon} width="24" height="24" alt="" />
        triattn
        {state.value !== null && <small>{state.value.version}</small>}
      </h1>
      <nav class="nav" aria-label="Views">
        {VIEWS.map(({ view, title }) => (
          <a key={view} href={`#/${view}`} aria-current={view === current ? "page" : undefined}>
            {title}
            {view === "requests" && rows.value.length > 0 && (
              <span class="tag">{full(rows.value.length)}</span>
            )}
          </a>
        ))}
      </nav>
      <div class="end">
        <ConnectionPill />
        <ThemeButton />
      </div>
    </header>
  );
}

function ConnectionPill() {
  switch (connection.value.phase) {
    case "live":
      return <span class="pill good">Live</span>;
    case "connecting":
      return <span class="pill">Connecting</span>;
    case "unauthorized":
      return <span class="pill bad">Token wanted</span>;
    case "reconnecting":
      return <span class="pill warn">Reconnecting</span>;
  }
}

const NEXT: Record<Theme, Theme> = { system: "light", light: "dark", dark: "system" };
const NAMES: Record<Theme, string> = { system: "as the system", light: "light", dark: "dark" };
const ICONS = { system: Screen, light: Sun, dark: Moon };

function ThemeButton() {
  const Icon = ICONS[theme.value];
  const label = `Colours: ${NAMES[theme.value]}. Change to ${NAMES[NEXT[theme.value]]}`;
  return (
    <button
      type="button"
      class="button quiet icon"
      aria-label={label}
      title={label}
      onClick={() => {
        theme.value = NEXT[theme.value];
      }}
    >
      <Icon />
    </button>
  );
}
