import { emptyRule, type RuleDraft } from "../lib/rules.ts";
import { rules } from "../state/draft.ts";
import { announcement } from "../state/page.ts";
import { Close, Down, Plus, Up } from "../ui/icons.tsx";

type TextField = Exclude<keyof RuleDraft, "id" | "document">;

const FIELDS: readonly { name: TextField; label: string; placeholder: string; numeric?: boolean }[] = [
  { name: "name", label: "Name", placeholder: "interactive" },
  { name: "model", label: "Model", placeholder: "any" },
  { name: "tags", label: "Tags, all of", placeholder: "any" },
  { name: "min", label: "Priority from", placeholder: "any", numeric: true },
  { name: "max", label: "to", placeholder: "any", numeric: true },
  { name: "budget", label: "Budget", placeholder: "the policy's", numeric: true },
];

/** The rules, in their order. */
export function Rules() {
  const list = rules.value;
  const change = (id: number, field: TextField, value: string) => {
    rules.value = list.map((rule) => {
      if (rule.id !== id) return rule;
      return { ...rule, [field]: value, ...(field === "preset" && { document: undefined }) };
    });
  };
  const move = (from: number, to: number) => {
    const next = [...list];
    const [rule] = next.splice(from, 1);
    if (rule === undefined) return;
    next.splice(to, 0, rule);
    rules.value = next;
    announcement.value = `Rule ${rule.name} is now number ${to + 1} of ${next.length}`;
  };
  return (
    <div class="rules">
      <p class="muted small">
        The first rule that matches a request decides; a request's own budget wins over all of them.
      </p>
      <ol>
        {list.map((rule, i) => (
          <li key={rule.id}>
            <fieldset class="rule">
              <legend class="sr-only">
                Rule {i + 1}: {rule.name}
              </legend>
              <span class="rule-number" aria-hidden="true">
                {i + 1}
              </span>
              <div class="rule-fields">
                {FIELDS.map(({ name, label, placeholder, numeric }) => (
                  <label key={name} class={`field f-${name}`}>
                    <span>{label}</span>
                    <input
                      class="input"
                      inputMode={numeric ? "numeric" : "text"}
                      placeholder={placeholder}
                      value={rule[name]}
                      onInput={(event) => change(rule.id, name, event.currentTarget.value)}
                    />
                  </label>
                ))}
                <label class="field f-preset">
                  <span>Policy</span>
                  <select
                    class="select"
                    value={rule.document === undefined ? rule.preset : "own"}
                    onChange={(event) => change(rule.id, "preset", event.currentTarget.value)}
                  >
                    <option value="">the policy itself</option>
                    {rule.document !== undefined && <option value="own">a document of its own</option>}
                    {PRESET_NAMES.map((name) => (
                      <option key={name}>{name}</option>
                    ))}
                  </select>
                </label>
              </div>
              <div class="rule-buttons">
                <IconButton
                  label={`Move rule ${rule.name} up`}
                  disabled={i === 0}
                  onClick={() => move(i, i - 1)}
                >
                  <Up size={14} />
                </IconButton>
                <IconButton
                  label={`Move rule ${rule.name} down`}
                  disabled={i === list.length - 1}
                  onClick={() => move(i, i + 1)}
                >
                  <Down size={14} />
                </IconButton>
                <IconButton
                  label={`Remove rule ${rule.name}`}
                  onClick={() => {
                    rules.value = list.filter(({ id }) => id !== rule.id);
                  }}
                >
                  <Close size={14} />
                </IconButton>
              </div>
            </fieldset>
          </li>
        ))}
      </ol>
      <button
        type="button"
        class="button"
        onClick={() => {
          rules.value = [...list, emptyRule(freeName(list))];
        }}
      >
        <Plus size={14} /> Add a rule
      </button>
    </div>
  );
}

function freeName(list: readonly RuleDraft[]): string {
  for (let i = list.length + 1; ; i++) {
    if (!list.some(({ name }) => name === `rule-${i}`)) return `rule-${i}`;
  }
}

interface IconButtonProps {
  readonly label: string;
  readonly disabled?: boolean;
  readonly onClick: () => void;
  readonly children: preact.ComponentChildren;
}

function IconButton({ label, disabled = false, onClick, children }: IconButtonProps) {
  return (
    <button
      type="button"
      class="button quiet icon"
      aria-label={label}
      title={label}
      disabled={disabled}
      onClick={onClick}
    >
      {children}
    </button>
  );
}
