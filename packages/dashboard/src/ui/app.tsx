import { tokenWanted } from "../api/token.ts";
import { announcement, route } from "../state/page.ts";
import { Events } from "../views/events.tsx";
import { Overview } from "../views/overview.tsx";
import { Policy } from "../views/policy.tsx";
import { Requests } from "../views/requests.tsx";
import { Banner } from "./banner.tsx";
import { Header } from "./header.tsx";
import { Strip } from "./strip.tsx";
import { TokenPrompt } from "./token-prompt.tsx";

const TITLES = { overview: "Overview", requests: "Requests", policy: "Policy", events: "Events" };

export function App() {
  const { view } = route.value;
  document.title = `${TITLES[view]} · triattn`;
  return (
    <div class="page">
      <div>
        <button type="button" class="skip" onClick={skip}>
          Skip to the content
        </button>
        <Header />
      </div>
      <Banner />
      <Strip />
      <main id="main" tabIndex={-1} class={view === "requests" || view === "events" ? "main fills" : "main"}>
        {view === "overview" && <Overview />}
        {view === "requests" && <Requests />}
        {view === "policy" && <Policy />}
        {view === "events" && <Events />}
      </main>
      {tokenWanted.value !== "no" && <TokenPrompt />}
      <div class="sr-only" aria-live="polite" role="status">
        {announcement.value}
      </div>
    </div>
  );
}

function skip(): void {
  document.getElementById("main")?.focus();
}
