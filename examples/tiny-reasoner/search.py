"""Compare policies on the tiny reasoner by teacher-forced replay: seconds a policy, no engine.

    python examples/tiny-reasoner/search.py MODEL --stats FILE --policy auto --policy keydiff --policy mine.json

Training items only: what is found here is frozen, and then reported on held-out items by `triattn eval`. A trace counts
as exact when each of its tokens is the likeliest one after the right ones before it, whatever was evicted.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from data import CLONE, generated, read_ids, task_count
from transformers import AutoConfig, AutoModelForCausalLM

from triattn import model as models
from triattn.calibrate.replay import replay
from triattn.config import parse_policy, preset
from triattn.engines.policy import model_shape
from triattn.policies import Policy
from triattn.statistics import Statistics


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--policy", action="append", required=True, help="preset, JSON file or JSON; repeated"
    )
    parser.add_argument("--stats", type=Path, help="statistics of the model, for terms that need them")
    parser.add_argument("--keep", default="8,16", help="kept of the trace: one in so many, by commas")
    parser.add_argument("--length", default="1500")
    parser.add_argument("--items", type=int, default=8, help="of each task")
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--interval", type=int, default=64)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--triattn", default=CLONE, help="command line of triattn, for the generators")
    return parser.parse_args()


def read_policy(text: str, window: int) -> Policy:
    """A policy, its window at most `window`."""
    if text.startswith("{") or text.endswith(".json"):
        document = parse_policy(json.loads(text if text.startswith("{") else Path(text).read_text()))
    else:
        document = preset(text)
    policy = Policy.of(document)
    return replace(policy, window=min(policy.window, window))


def main() -> None:
    """Print one line a policy, part kept and task: exact traces, and the part of tokens that are right."""
    args = arguments()
    ids = read_ids(args.model / "tokenizer.json")
    config = AutoConfig.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    geometry = models.geometry(config)
    shape = model_shape(config, geometry)
    statistics = Statistics.load(args.stats) if args.stats else None
    options = {"length": args.length, "split": "train", "seed": args.seed, "task": args.tasks}
    examples = list(generated(args.triattn, ids, count=args.items * task_count(args.tasks), **options))
    policies: list[tuple[str, Policy | None]] = [("full", None)]
    policies += [(text, read_policy(text, args.window)) for text in args.policy]
    for name, policy in policies:
        ready = policy.with_statistics(statistics) if policy else None
        for keep in [1] if policy is None else [int(part) for part in args.keep.split(",")]:
            found: dict[str, list[tuple[bool, float]]] = {}
            for example in examples:
                tokens = list(example.prompt + example.trace)
                first = len(example.prompt)
                budget = first + -(-len(example.trace) // keep)
                logs = replay(
                    model,
                    tokens[:-1],
                    shape,
                    ready,
                    statistics,
                    budget=budget,
                    interval=args.interval,
                    prompt_len=first,
                )
                same = logs[first - 1 :].argmax(-1) == torch.tensor(tokens[first:])
                found.setdefault(example.task, []).append((bool(same.all()), same.float().mean().item()))
            cells = [
                f"{task} {sum(e for e, _ in rows)}/{len(rows)} ({sum(r for _, r in rows) / len(rows):.4f})"
                for task, rows in sorted(found.items())
            ]
            print(f"1/{keep:<3} {name[:60]:60} {'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
