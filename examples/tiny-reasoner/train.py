"""Train the tiny reasoner: exact traces of the tasks of `triattn eval`, one GPU, a quarter of an hour.

    python examples/tiny-reasoner/train.py OUT --by-time --minutes 12 --muon --rate 3e-3 --tokens 65536

Ends by itself and can go on (`--resume`), so that several short runs make one long one. Writes a Hugging Face
directory, and in it `log.jsonl` (loss, and exact traces on held-out items, teacher-forced) and `training.svg`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from data import (
    CLONE,
    Example,
    ahead,
    batches,
    generated,
    parse,
    pinned,
    read_ids,
    stored,
    task_count,
    to_batch,
    write_tokenizer,
)
from figure import draw
from model import SHAPES, TinyReasoner, export
from muon import Muon

STAGES = "0:100-300,0.12:100-700,0.30:100-1500,0.60:200-2500,0.80:200-4000"
"""Curriculum: part of the training from which on, least and most tokens of a trace."""
WIDTHS = [448, 1024, 1792, 2816, 4608]
"""Of compiled batches, few since each is compiled; otherwise every multiple of 64."""
CHECK_LENGTHS = [300, 1500, 4000]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="directory of the model")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--steps", type=int, default=12000, help="optimizer steps of the whole training")
    parser.add_argument(
        "--minutes", type=float, default=28.0, help="stop this run after so long; --resume goes on"
    )
    parser.add_argument(
        "--by-time",
        action="store_true",
        help="curriculum and learning rate follow the clock and end with --minutes, whatever the machine's speed",
    )
    parser.add_argument("--tokens", type=int, default=131072, help="tokens of a batch, padding included")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--stages", type=stages, default=STAGES, help="curriculum: PART:LEAST-MOST,…")
    parser.add_argument(
        "--muon", action="store_true", help="Muon for the layers' matrices, which needs fewer steps"
    )
    parser.add_argument("--longest", type=int, default=4000, help="longest trace in tokens")
    parser.add_argument("--tasks", default="all", help="tasks of `triattn eval generate`, by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--triattn", default=CLONE, help="command line of triattn, for the generators")
    parser.add_argument("--workers", type=int, default=4, help="generator processes")
    parser.add_argument(
        "--data", type=Path, nargs="*", default=[], help="files of items instead of generators"
    )
    parser.add_argument("--held-out", type=Path, help="with --data: file of held-out items to check")
    parser.add_argument("--check-every", type=int, default=1000, help="steps between held-out checks")
    parser.add_argument("--check-items", type=int, default=16, help="held-out items of each task and length")
    parser.add_argument("--resume", action="store_true", help="go on with the checkpoint beside OUT")
    args = parser.parse_args()
    if args.by_time and args.resume:
        parser.error("--by-time runs from start to end: it cannot --resume")
    return args


def learning_rate(done: float, peak: float) -> float:
    """Warm-up, plateau, and a linear end over the last third; ``done`` is the part of the training behind, 0 to 1."""
    if done < 0.02:
        return peak * max(0.01, done / 0.02)
    return peak * min(1.0, max(0.02, (1 - done) * 3))


def stages(text: str) -> list[tuple[float, int, int]]:
    """PART:LEAST-MOST,… → (part, least, most)."""
    entries = [entry.replace(":", "-").split("-") for entry in text.split(",")]
    return [(float(part), int(least), int(most)) for part, least, most in entries]


def stage(args: argparse.Namespace, done: float) -> tuple[int, int]:
    """Least and most tokens of a trace when this part of the training is behind."""
    _, least, most = max(entry for entry in args.stages if entry[0] <= done)
    return min(least, args.longest), min(most, args.longest)


def optimizers(model: TinyReasoner, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """AdamW for all; or Muon for the layers' matrices."""
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    embedding = [model.model.embed_tokens.weight]
    groups = [{"params": vectors, "weight_decay": 0.0}]
    first: list[torch.optim.Optimizer] = []
    if args.muon:
        first = [Muon(matrices, lr=args.rate)]
        groups.append({"params": embedding, "weight_decay": 0.0})
    else:
        groups.append({"params": matrices + embedding, "weight_decay": 0.1})
    fused = args.device.startswith("cuda")
    return [*first, torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.95), fused=fused)]


def source(args: argparse.Namespace, ids: bytes, number: int, lengths: tuple[int, int]) -> Iterator[Example]:
    """Endless items of a stage, new ones in every stage and run."""
    least, most = lengths
    if args.data:
        return ahead([stored(args.data, ids, least, most)])
    seeds = [args.seed * 100_000 + number * 100 + worker for worker in range(args.workers)]
    options = {"length": f"{least}-{most}", "split": "train", "task": args.tasks}
    return ahead([generated(args.triattn, ids, seed=seed, **options) for seed in seeds])


@torch.no_grad()
def check(
    model: TinyReasoner, args: argparse.Namespace, held_out: list[tuple[int, Example]], device: str
) -> dict:
    """Part of held-out traces all of whose tokens are the likeliest ones, by task and length."""
    right: dict[str, list[bool]] = {}
    for length, example in held_out:
        inputs, targets = to_batch([example], len(example) - 1)
        # Lengths of all kinds: not worth compiling.
        with autocast(device), torch.compiler.set_stance("force_eager"):
            logits = model(inputs.to(device))
        wanted = targets[0] >= 0
        same = (logits[0].argmax(-1).cpu() == targets[0])[wanted]
        right.setdefault(f"{example.task}-{length}", []).append(bool(same.all()))
    return {name: sum(values) / len(values) for name, values in sorted(right.items())}


def autocast(device: str) -> contextlib.AbstractContextManager:
    """bfloat16 products on a GPU, float32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.startswith("cuda") else contextlib.nullcontext()


def held_out_items(args: argparse.Namespace, ids: bytes) -> list[tuple[int, Example]]:
    """Items of the split that `triattn eval` uses, of another seed than its own, with the length asked for."""
    lengths = [n for n in CHECK_LENGTHS if n <= args.longest] or [args.longest]
    if args.data:
        if args.held_out is None:
            return []
        examples = [parse(line, ids) for line in args.held_out.read_text().splitlines()]
        return [(next((n for n in lengths if len(e.trace) <= n), lengths[-1]), e) for e in examples]
    items = []
    count = args.check_items * task_count(args.tasks)
    for length in lengths:
        options = {"split": "heldout", "seed": 999, "count": count, "task": args.tasks}
        items += [(length, item) for item in generated(args.triattn, ids, length=str(length), **options)]
    return items


def main() -> None:
    """Train, check, export."""
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device, began = args.device, time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "tokenizer.json").exists():
        write_tokenizer(args.triattn, args.out)
    ids = read_ids(args.out / "tokenizer.json")
    model = TinyReasoner(SHAPES[args.shape]).to(device)
    steppers = optimizers(model, args)
    checkpoint, log_path = args.out / "checkpoint.pt", args.out / "log.jsonl"
    step = 0
    if args.resume:
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(steppers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        step = state["step"]
    elif log_path.exists():
        log_path.unlink()
    if not args.no_compile:
        # A layer rather than the model: all layers share its code, so that each width is compiled once.
        torch._dynamo.config.recompile_limit = 64
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    wide = args.longest + 640
    widths = list(range(128, wide, 64)) if args.no_compile else [w for w in WIDTHS if w <= wide] or WIDTHS[:1]
    held_out = held_out_items(args, ids)
    generator = torch.Generator().manual_seed(args.seed + step)

    def log(**what: object) -> None:
        line = json.dumps({"step": step, "seconds": round(time.monotonic() - began, 1), **what})
        print(line, flush=True)
        with log_path.open("a") as file:
            file.write(line + "\n")

    def save() -> None:
        kept = [optimizer.state_dict() for optimizer in steppers]
        state = {"model": model.state_dict(), "optimizers": kept, "step": step}
        torch.save(state, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").rename(checkpoint)

    def done() -> float:
        """Part of the training that is behind."""
        return (time.monotonic() - began) / (args.minutes * 60) if args.by_time else step / args.steps

    seen, losses = 0, []
    out_of_time = False
    while step < args.steps and not out_of_time:
        lengths = stage(args, done())
        examples = source(args, ids, step, lengths)
        ready = ahead([pinned(batches(examples, args.tokens, widths, generator))], depth=8)
        for inputs, targets in ready:
            if step >= args.steps or stage(args, done()) != lengths:
                break
            if time.monotonic() - began > args.minutes * 60:
                out_of_time = True
                break
            rate = learning_rate(done(), args.rate)
            for group in (group for optimizer in steppers for group in optimizer.param_groups):
                group["lr"] = rate
            with autocast(device):
                logits = model(inputs.to(device, non_blocking=True))
            wanted = targets.to(device, non_blocking=True).flatten()
            loss = F.cross_entropy(logits.flatten(0, 1), wanted, ignore_index=-100)
            model.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in steppers:
                optimizer.step()
            step += 1
            seen += inputs.numel()
            losses.append(loss.detach())
            if step % 50 == 0 or step == args.steps:
                log(loss=round(torch.stack(losses).mean().item(), 5), rate=rate, lengths=lengths, tokens=seen)
                losses.clear()
            if step % args.check_every == 0:
                log(exact=check(model, args, held_out, device))
                save()
        ready.close()  # type: ignore[attr-defined]
        examples.close()  # type: ignore[attr-defined]
    save()
    # What is exported is rounded: so is what is checked last.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().to(parameter.dtype))
    size = export(model, args.out)
    log(
        exact=check(model, args, held_out, device),
        bytes=size,
        parameters=sum(p.numel() for p in model.parameters()),
    )
    draw(log_path, args.out / "training.svg")
    if math.isfinite(args.minutes) and step < args.steps and not args.by_time:
        print(f"stopped after {step} of {args.steps} steps: --resume goes on", flush=True)


if __name__ == "__main__":
    main()
