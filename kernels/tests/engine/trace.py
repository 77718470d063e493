"""Reads rounds that other processes recorded (``TRIATTN_OBSERVE_DIR``) and joins the ranks' shares."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from .oracle import Round


class DirectoryReader:
    """Rounds of tensor-parallel ranks: each holds its own KV heads, rank 0 the first."""

    def __init__(self, directory: Path, ranks: int) -> None:
        self._directory = directory
        self._ranks = ranks
        self._seen: set[str] = set()
        self._parts: dict[tuple[str, int, int], dict[int, np.ndarray]] = defaultdict(dict)

    def new(self) -> list[tuple[str, Round]]:
        """(request id, round) of every round complete since the last call, in order."""
        files = [p for p in self._directory.glob("*.npz") if p.name not in self._seen]
        done = []
        for path in sorted(files, key=lambda p: int(p.name.split("-")[1])):
            self._seen.add(path.name)
            with np.load(path) as record:
                key = str(record["request_id"]), int(record["computed"]), int(record["evicted_total"])
                parts = self._parts[key]
                parts[int(record["rank"])] = record["kept"]
            if len(parts) == self._ranks:
                kept = np.concatenate([parts[rank] for rank in range(self._ranks)], axis=1)
                done.append((key[0], Round(key[1], key[2], kept)))
                del self._parts[key]
        return done
