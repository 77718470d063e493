/** Rows of a long list that are in the document. */
export interface VirtualWindow {
  readonly first: number;
  /** Exclusive. */
  readonly end: number;
  /** Height of the rows above, in pixels. */
  readonly before: number;
  readonly total: number;
}

/** Which rows of `count`, each `rowHeight` pixels high, a viewport shows, with `overscan` more at either side. */
export function virtualWindow(
  count: number,
  rowHeight: number,
  scrollTop: number,
  viewport: number,
  overscan = 8,
): VirtualWindow {
  const most = Math.max(0, count * rowHeight - viewport);
  const top = Math.min(Math.max(0, scrollTop), most);
  // In steps of four: fewer renders while it scrolls.
  const first = Math.max(0, Math.floor(top / rowHeight / 4) * 4 - overscan);
  const end = Math.min(count, Math.ceil((top + viewport) / rowHeight) + 4 + overscan);
  return { first, end, before: first * rowHeight, total: count * rowHeight };
}

/** Where to scroll so that a row is seen whole; the present place where it is. */
export function scrollToRow(index: number, rowHeight: number, scrollTop: number, viewport: number): number {
  const top = index * rowHeight;
  if (top < scrollTop) return top;
  if (top + rowHeight > scrollTop + viewport) return top + rowHeight - viewport;
  return scrollTop;
}

/** The row that a key moves to; undefined for keys that move nowhere. -1: none is chosen yet. */
export function moveRow(key: string, at: number, count: number, page: number): number | undefined {
  if (count === 0) return undefined;
  const to = {
    ArrowDown: at + 1,
    ArrowUp: at < 0 ? 0 : at - 1,
    PageDown: Math.max(0, at) + page,
    PageUp: Math.max(0, at) - page,
    Home: 0,
    End: count - 1,
  }[key];
  return to === undefined ? undefined : Math.min(count - 1, Math.max(0, to));
}
