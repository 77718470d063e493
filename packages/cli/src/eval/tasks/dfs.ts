import type { Random } from "../random.ts";
import type { Draft, TraceTask } from "./trace.ts";

const NAMES = [..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"];
const MOST_NODES = 40;
const MOST_STEPS = 99;

export type Graph = ReadonlyMap<string, readonly string[]>;

/** State of a depth-first search after some steps; node names, the stack from bottom to top. */
export interface SearchState {
  readonly current: string;
  readonly stack: readonly string[];
  /** In the order of the visits. */
  readonly visited: readonly string[];
}

/**
 * Each step visits the smallest neighbour not visited yet, or goes back where there is none. Its line: steps left
 * (two digits), node, then each neighbour looked at with `-` (visited) or the search's `mark` (taken), or `<` and the
 * node below. So a node followed by the mark is one that this search has visited. Ends early when the start has
 * nothing left to visit.
 */
export function search(
  graph: Graph,
  start: string,
  steps: number,
  mark: string,
): { lines: string[]; state: SearchState } {
  const stack = [start];
  const visited = [start];
  const seen = new Set(visited);
  const lines: string[] = [];
  for (let left = steps; left > 0; left--) {
    const node = stack.at(-1) as string;
    let line = String(left).padStart(2, "0") + node;
    const neighbours = graph.get(node) ?? [];
    const next = neighbours.find((neighbour) => !seen.has(neighbour));
    for (const neighbour of neighbours) {
      line += neighbour + (neighbour === next ? mark : "-");
      if (neighbour === next) break;
    }
    if (next !== undefined) {
      stack.push(next);
      visited.push(next);
      seen.add(next);
    } else {
      if (stack.length === 1) break;
      stack.pop();
      line += `<${stack.at(-1)}`;
    }
    lines.push(`${line}\n`);
  }
  return { lines, state: { current: stack.at(-1) as string, stack, visited } };
}

function connected(random: Random, nodes: number, degree: number): Graph {
  const names = random.shuffle(NAMES).slice(0, nodes).sort();
  const edges = new Map(names.map((name) => [name, new Set<string>()]));
  const join = (a: string, b: string) => {
    edges.get(a)?.add(b);
    edges.get(b)?.add(a);
  };
  const order = random.shuffle(names);
  for (let i = 1; i < order.length; i++) {
    // Near the end of what is there already, so that searches go deep.
    join(order[i] as string, order[random.whole(Math.max(0, i - 3), i - 1)] as string);
  }
  for (let extra = Math.floor((nodes * (degree - 2)) / 2); extra > 0; extra--) {
    join(random.pick(names), random.pick(names));
  }
  for (const [name, others] of edges) others.delete(name);
  return new Map(names.map((name) => [name, [...(edges.get(name) ?? [])].sort()]));
}

/** Current node, the stack from top to bottom, the visited nodes in order. */
const shown = ({ current, stack, visited }: SearchState) =>
  `=${current}|${stack.toReversed().join("")}|${visited.join("")}\n`;

function draft(random: Random, length: number): Draft {
  const nodes = Math.min(MOST_NODES, Math.max(4, Math.floor(length / 22), random.whole(16, MOST_NODES)));
  const small = Math.min(nodes, Math.max(4, Math.floor(length / 12)));
  const graph = connected(random, small, 2.6 + random.next());
  const names = [...graph.keys()];
  const queries: { start: string; steps: number; state: SearchState }[] = [];
  let trace = "";
  let answer = "";
  // One for the end token.
  for (let left = length - 1; ; ) {
    const start = random.pick(names);
    let steps = Math.min(MOST_STEPS, random.whole(names.length, 2 * (names.length - 1)));
    let text = "";
    let state: SearchState | undefined;
    // The last search is cut to what is left.
    for (; steps > 0; steps--) {
      const mark = String(queries.length % 10);
      const found = search(graph, start, steps, mark);
      const head = `#${start}${mark}${String(steps).padStart(2, "0")}\n`;
      text = head + found.lines.join("") + shown(found.state);
      state = found.state;
      if (text.length <= left) break;
    }
    if (steps === 0 || state === undefined) break;
    queries.push({ start, steps, state });
    trace += text;
    answer = shown(state);
    left -= text.length;
    if (left < Math.max(20, 0.05 * length)) break;
  }
  const adjacency = [...graph].map(([name, others]) => `${name}:${others.join("")}\n`);
  const asked = queries.map(({ start, steps }) => `?${start}${String(steps).padStart(2, "0")}\n`);
  return {
    prompt: `D\n${adjacency.join("")}${asked.join("")}`,
    expected: trace,
    answer,
    metadata: {
      graph: {
        nodes: names,
        edges: [...graph].flatMap(([a, others]) => others.filter((b) => a < b).map((b) => [a, b])),
      },
      queries: queries.map(({ start, steps, state }) => ({
        start_node: start,
        steps,
        answer: { current_node: state.current, stack: state.stack, visited_nodes: state.visited },
      })),
    },
  };
}

/** The Recursive State Query of TriAttention (arXiv 2604.04921): several depth-first searches of one graph. */
export const dfs: TraceTask = {
  name: "dfs",
  description: "recursive state query: depth-first searches of a graph, their state after k steps",
  least: 100,
  draft,
};
