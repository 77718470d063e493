"""Training items from the generators of `triattn eval generate`: through pipes, or from files that they wrote."""

from __future__ import annotations

import json
import lzma
import queue
import shlex
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
EOS, PAD = 1, 0
T = TypeVar("T")
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Example:
    """Token ids, a byte each, of a prompt and of its trace, the end token included."""

    task: str
    prompt: bytes
    trace: bytes

    def __len__(self) -> int:
        return len(self.prompt) + len(self.trace)


CLONE = shlex.join(["node", "--import", "tsx", str(ROOT / "packages" / "cli" / "src" / "bin.ts")])
"""How to run triattn's command line in this clone."""


def write_tokenizer(triattn: str, directory: Path) -> None:
    """The tasks' tokenizer as Hugging Face files.

    Raises:
        CalledProcessError: there is no such command, or it failed.
    """
    subprocess.run([*shlex.split(triattn), "eval", "tokenizer", str(directory)], check=True, cwd=ROOT)


def read_ids(tokenizer: Path) -> bytes:
    """Token ids by character, as a table for `bytes.translate`, from a tokenizer.json."""
    vocabulary = json.loads(tokenizer.read_text())["model"]["vocab"]
    table = bytearray(256)
    for token, number in vocabulary.items():
        if len(token) == 1:
            table[ord(token)] = number
    return bytes(table)


def parse(line: str, ids: bytes) -> Example:
    """One line that the generator wrote."""
    item = json.loads(line)
    prompt, trace = (item[name].encode("latin-1").translate(ids) for name in ("prompt", "expected"))
    return Example(item["task"], prompt, trace + bytes([EOS]))


def task_count(tasks: str) -> int:
    """How many tasks a list by commas names; `all` are four."""
    return 4 if tasks == "all" else len(tasks.split(","))


def generated(
    triattn: str,
    ids: bytes,
    *,
    length: str,
    split: str,
    seed: int,
    count: int = 10**9,
    task: str = "all",
) -> Iterator[Example]:
    """Items from a generator process, which ends with the iterator."""
    options = {"task": task, "length": length, "split": split, "seed": seed, "count": count}
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [*shlex.split(triattn), "eval", "generate", *flags, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            yield parse(line, ids)
        if process.wait() != 0:
            raise RuntimeError(f"the generator ended with exit code {process.returncode}")
    finally:
        process.kill()
        process.wait()


def stored(paths: list[Path], ids: bytes, least: int, most: int) -> Iterator[Example]:
    """Items of files (JSON lines, `.xz` or plain) with traces of `least` to `most` tokens, over and over."""
    while True:
        found = False
        for path in paths:
            with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as lines:
                for line in lines:
                    example = parse(line, ids)
                    if least <= len(example.trace) <= most:
                        found = True
                        yield example
        if not found:
            raise RuntimeError(f"no item of {least} to {most} tokens in {', '.join(map(str, paths))}")


def ahead(sources: list[Iterator[T]], depth: int = 2048) -> Iterator[T]:
    """Items of several sources, made by threads of their own, up to `depth` ahead."""
    items: queue.Queue[T | BaseException] = queue.Queue(depth)
    stop = threading.Event()

    def pump(source: Iterator[T]) -> None:
        try:
            for example in source:
                while not stop.is_set():
                    try:
                        items.put(example, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                if stop.is_set():
                    source.close()  # type: ignore[attr-defined]
                    return
        except BaseException as error:
            items.put(error)

    threads = [threading.Thread(target=pump, args=(source,), daemon=True) for source in sources]
    for thread in threads:
        thread.start()
    try:
        while True:
            item = items.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=5)


def to_batch(examples: list[Example], width: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 [B, width]; targets are -100 outside of traces."""
    inputs = torch.full((len(examples), width), PAD)
    targets = torch.full((len(examples), width), -100)
    for row, example in enumerate(examples):
        ids = torch.frombuffer(bytearray(example.prompt + example.trace), dtype=torch.uint8).long()
        inputs[row, : len(ids) - 1] = ids[:-1]
        first = len(example.prompt) - 1
        targets[row, first : len(ids) - 1] = ids[first + 1 :]
    return inputs, targets


def batches(
    examples: Iterator[Example], tokens: int, widths: list[int], generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of about `tokens` tokens, each of the least width (of a few, since each is compiled) that fits."""
    held: dict[int, list[Example]] = {width: [] for width in widths}
    for example in examples:
        width = next((w for w in widths if len(example) <= w + 1), None)
        if width is None:
            continue
        rows = held[width]
        rows.append(example)
        if len(rows) < max(1, tokens // width):
            continue
        order = torch.randperm(len(rows), generator=generator).tolist()
        yield to_batch([rows[i] for i in order], width)
        held[width] = []


def pinned(made: Iterator[Batch]) -> Iterator[Batch]:
    """Batches in page-locked memory where there is a GPU."""
    gpu = torch.cuda.is_available()
    for inputs, targets in made:
        yield (inputs.pin_memory(), targets.pin_memory()) if gpu else (inputs, targets)
