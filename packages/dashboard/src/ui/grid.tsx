import { Component, type ComponentChild } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { moveRow, scrollToRow, virtualWindow } from "../lib/virtual.ts";
import { useSize } from "./hooks.ts";
import { Down, Up } from "./icons.tsx";

export interface GridColumn<T> {
  readonly id: string;
  readonly title: string;
  /** Said in full where the title is short. */
  readonly description?: string;
  /** Least width in pixels; what is left over goes to columns that `grow`. */
  readonly width: number;
  readonly grow?: number;
  readonly numeric?: boolean;
  /** Columns of a high rank go first where there is no room. */
  readonly rank: number;
  cell(item: T): ComponentChild;
}

export interface GridProps<T> {
  readonly label: string;
  readonly columns: readonly GridColumn<T>[];
  readonly items: readonly T[];
  readonly keyOf: (item: T) => string;
  readonly rowHeight?: number;
  readonly selected?: string | null;
  readonly onSelect?: (item: T) => void;
  readonly sort?: { readonly column: string; readonly descending: boolean };
  readonly onSort?: (column: string) => void;
  readonly empty: ComponentChild;
}

const GAP = 12;
const PADDING = 24;

/** The columns that fit into a width: those of the highest rank go until the others do. */
export function fitting<T>(columns: readonly GridColumn<T>[], width: number): GridColumn<T>[] {
  let left = [...columns];
  const needed = () => left.reduce((sum, column) => sum + column.width + GAP, PADDING - GAP);
  while (left.length > 1 && needed() > width) {
    const last = left.reduce((a, b) => (b.rank >= a.rank ? b : a));
    left = left.filter((column) => column !== last);
  }
  return left;
}

/**
 * A table of any number of rows, of which only those in sight are in the document. One stop of the Tab key: arrows,
 * Page up and down, Home and End move, Enter and Space choose. Rows keep their place by key while the data changes.
 */
export function Grid<T>(props: GridProps<T>) {
  const { label, items, keyOf, rowHeight = 32, selected = null, onSelect, empty } = props;
  const id = useId();
  const [ref, { width, height }] = useSize<HTMLDivElement>();
  const head = useRef<HTMLDivElement>(null);
  /** Where it was when the rows in the document were last changed. */
  const [scrollTop, setScrollTop] = useState(0);
  const [activeKey, setActiveKey] = useState<string | null>(null);
  const columns = fitting(props.columns, width || 1000);
  const headHeight = 30;
  const viewport = Math.max(rowHeight, height - headHeight);
  const shown = virtualWindow(items.length, rowHeight, scrollTop, viewport);
  const active = activeKey === null ? -1 : items.findIndex((item) => keyOf(item) === activeKey);
  const frame = useRef(0);
  useEffect(() => () => cancelAnimationFrame(frame.current), []);

  // A request that a link leads to is brought in sight, once.
  const brought = useRef(false);
  const ready = height > 0 && items.length > 0;
  useEffect(() => {
    const element = ref.current;
    if (!ready || brought.current || element === null) return;
    brought.current = true;
    const index = selected === null ? -1 : items.findIndex((item) => keyOf(item) === selected);
    if (index >= 0) element.scrollTop = scrollToRow(index, rowHeight, element.scrollTop, viewport);
  }, [ready]);

  const onScroll = (event: Event) => {
    const element = event.currentTarget as HTMLElement;
    cancelAnimationFrame(frame.current);
    frame.current = requestAnimationFrame(() => {
      const next = virtualWindow(items.length, rowHeight, element.scrollTop, viewport);
      if (next.first !== shown.first || next.end !== shown.end) setScrollTop(element.scrollTop);
    });
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.target !== event.currentTarget) return;
    if ((event.key === "Enter" || event.key === " ") && active >= 0) {
      event.preventDefault();
      const item = items[active];
      if (item !== undefined) onSelect?.(item);
      return;
    }
    const to = moveRow(event.key, active, items.length, Math.floor(viewport / rowHeight) - 1);
    const item = to === undefined ? undefined : items[to];
    if (to === undefined || item === undefined) return;
    event.preventDefault();
    setActiveKey(keyOf(item));
    const element = event.currentTarget as HTMLElement;
    element.scrollTop = scrollToRow(to, rowHeight, element.scrollTop, viewport);
    setScrollTop(element.scrollTop);
  };
  const onFocus = () => {
    if (active >= 0) return;
    const first = items[Math.min(items.length - 1, Math.ceil((ref.current?.scrollTop ?? 0) / rowHeight))];
    const chosen = selected !== null && items.some((item) => keyOf(item) === selected);
    if (first !== undefined) setActiveKey(chosen ? selected : keyOf(first));
  };
  const template = columns
    .map(({ width, grow }) => (grow === undefined ? `${width}px` : `minmax(${width}px, ${grow}fr)`))
    .join(" ");
  const inSight = active >= shown.first && active < shown.end;
  return (
    <div class="grid-wrap">
      <div
        ref={ref}
        class="grid"
        role="grid"
        tabIndex={0}
        aria-label={label}
        aria-rowcount={items.length + 1}
        aria-colcount={columns.length}
        aria-activedescendant={inSight ? `${id}-${active}` : undefined}
        style={{ "--columns": template, "--line": `${rowHeight}px` }}
        onScroll={onScroll}
        onKeyDown={onKeyDown}
        onFocus={onFocus}
      >
        <div role="rowgroup" class="grid-head" ref={head}>
          <div role="row" class="grid-row" aria-rowindex={1}>
            {columns.map((column) => (
              <HeadCell key={column.id} column={column} sort={props.sort} onSort={props.onSort} />
            ))}
          </div>
        </div>
        <div role="rowgroup" class="grid-body" style={{ height: `${shown.total}px` }}>
          {items.slice(shown.first, shown.end).map((item, i) => {
            const index = shown.first + i;
            const key = keyOf(item);
            return (
              <Line
                key={key}
                id={`${id}-${index}`}
                index={index}
                top={index * rowHeight}
                item={item}
                columns={columns as readonly GridColumn<unknown>[]}
                layout={template}
                selected={onSelect === undefined ? undefined : key === selected}
                active={index === active}
                choose={() => {
                  setActiveKey(key);
                  onSelect?.(item);
                }}
              />
            );
          })}
        </div>
      </div>
      {items.length === 0 && <div class="grid-empty empty">{empty}</div>}
    </div>
  );
}

interface HeadCellProps<T> {
  readonly column: GridColumn<T>;
  readonly sort: GridProps<T>["sort"];
  readonly onSort: GridProps<T>["onSort"];
}

function HeadCell<T>({ column, sort, onSort }: HeadCellProps<T>) {
  const { id, title, description = title, numeric } = column;
  const sorted = sort?.column === id;
  const direction = sort?.descending ? "descending" : "ascending";
  const className = numeric ? "cell numeric" : "cell";
  return (
    <div role="columnheader" class={className} aria-sort={sorted ? direction : undefined} title={description}>
      {onSort === undefined ? (
        title
      ) : (
        <button type="button" onClick={() => onSort(id)}>
          <span>{title}</span>
          {sorted && (sort.descending ? <Down size={11} /> : <Up size={11} />)}
        </button>
      )}
    </div>
  );
}

interface LineProps {
  readonly id: string;
  readonly index: number;
  /** Pixels from the first row: rows stand where they are, so that scrolling paints only new ones. */
  readonly top: number;
  readonly item: unknown;
  readonly columns: readonly GridColumn<unknown>[];
  readonly layout: string;
  readonly selected: boolean | undefined;
  readonly active: boolean;
  readonly choose: () => void;
}

/** A row; while it scrolls by, it is not rendered again. */
class Line extends Component<LineProps> {
  override shouldComponentUpdate(next: LineProps): boolean {
    const now = this.props;
    return (
      next.item !== now.item ||
      next.index !== now.index ||
      next.selected !== now.selected ||
      next.active !== now.active ||
      next.layout !== now.layout
    );
  }

  override render({ id, index, top, item, columns, selected, active, choose }: LineProps) {
    const classes = ["grid-row", "line", selected && "selected", active && "active"]
      .filter(Boolean)
      .join(" ");
    return (
      // The keyboard's way is the grid's own.
      <div
        id={id}
        role="row"
        class={classes}
        style={{ top: `${top}px` }}
        aria-rowindex={index + 2}
        aria-selected={selected}
        onClick={choose}
      >
        {columns.map((column) => (
          <div key={column.id} role="gridcell" class={column.numeric ? "cell numeric" : "cell"}>
            {column.cell(item)}
          </div>
        ))}
      </div>
    );
  }
}
