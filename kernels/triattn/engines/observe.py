"""Observation of rounds: what every request keeps, as tests and tools need to see it.

Engine code calls, after a round of one request on one rank,

    if observe.observers:
        observe.notify(RoundRecord(...))

so that nothing is copied, or even computed, while nobody looks. An observer runs on the
worker's thread between the compaction and the forward pass: it must not touch the cache.

With ``TRIATTN_OBSERVE_DIR`` set, every process of the engine also writes its records to
that directory, one ``.npz`` a round, for readers in another process (tensor parallelism,
a served engine). A file appears under its name only once it is complete.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round of one request on one rank.

    request_id: the engine's internal id of the request.
    computed: C, tokens whose KV was computed at the round; the next logical position.
    evicted_total: E after the round.
    kept: int64 [layers, kv_heads, computed - evicted_total], this rank's layers and KV heads:
        the logical position of each resident entry, in slot order.
    rank: tensor-parallel rank.
    """

    request_id: str
    computed: int
    evicted_total: int
    kept: torch.Tensor
    rank: int


observers: list[Callable[[RoundRecord], None]] = []


def notify(record: RoundRecord) -> None:
    """Hand a record to every observer, in the order in which they were added."""
    for observer in observers:
        observer(record)


class DirectoryObserver:
    """Writes records as ``<pid>-<number>-r<rank>.npz``; numbers ascend within a process."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._numbers = itertools.count()

    def __call__(self, record: RoundRecord) -> None:
        import numpy as np

        stem = f"{os.getpid()}-{next(self._numbers):08d}-r{record.rank}"
        partial = self._directory / f".{stem}"
        with partial.open("wb") as file:
            np.savez(
                file,
                request_id=np.array(record.request_id),
                computed=np.int64(record.computed),
                evicted_total=np.int64(record.evicted_total),
                kept=record.kept.to("cpu").numpy(),
                rank=np.int64(record.rank),
            )
        partial.rename(self._directory / f"{stem}.npz")


if directory := os.environ.get("TRIATTN_OBSERVE_DIR"):
    observers.append(DirectoryObserver(directory))
