import { useState } from "preact/hooks";
import { setToken, tokenWanted } from "../api/token.ts";
import { stream } from "../state/page.ts";
import { useModal } from "./hooks.ts";

/** Asks for the token of a control plane that wants one. */
export function TokenPrompt() {
  const ref = useModal(() => {});
  const [value, setValue] = useState("");
  const wrong = tokenWanted.value === "wrong";
  const submit = (event: Event) => {
    event.preventDefault();
    if (value.trim() === "") return;
    setToken(value.trim());
    stream.open();
  };
  return (
    <dialog ref={ref} aria-labelledby="token-title">
      <form class="dialog" onSubmit={submit}>
        <h2 id="token-title">This control plane wants a token</h2>
        <p class="muted">
          It is the one that the control plane was started with. It stays in this tab and is forgotten when
          the tab is closed.
        </p>
        {wrong && (
          <p class="problem" role="alert" id="token-problem">
            That token was refused.
          </p>
        )}
        <label class="field">
          <span>Token</span>
          <input
            class="input mono"
            type="password"
            name="token"
            autocomplete="off"
            aria-invalid={wrong}
            aria-describedby={wrong ? "token-problem" : undefined}
            value={value}
            onInput={(event) => setValue(event.currentTarget.value)}
          />
        </label>
        <div class="actions">
          <button type="submit" class="button primary">
            Connect
          </button>
        </div>
      </form>
    </dialog>
  );
}
