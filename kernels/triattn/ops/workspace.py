"""Scratch memory of rounds: one allocation, divided for each row length, with nothing read from the device."""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNMENT = 256
"""Bytes at a multiple of which every buffer begins, so that kernels see one alignment only."""


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is at least `value`."""
    return -(-value // multiple) * multiple


class Workspace:
    """Scratch memory of `size` bytes on a device; it grows only when a single request needs more."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        self._device = device
        self._memory: Tensor | None = None
        self._known: dict[tuple[tuple[int, torch.dtype], ...], tuple[int, list[Tensor]]] = {}

    def divide(self, *parts: tuple[int, torch.dtype]) -> tuple[int, list[Tensor]]:
        """Buffers of (elements a request, dtype) for as many requests as fit, with that number of requests."""
        if (known := self._known.get(parts)) is not None:
            return known
        margin = ALIGNMENT * len(parts)
        one = max(sum(count * dtype.itemsize for count, dtype in parts), 1)
        if self._memory is None or one + margin > self._memory.numel():
            self._memory = torch.empty(max(self._size, one + margin), dtype=torch.uint8, device=self._device)
            self._known.clear()
        requests = (self._memory.numel() - margin) // one
        start, buffers = 0, []
        for count, dtype in parts:
            size = count * dtype.itemsize * requests
            buffers.append(self._memory[start : start + size].view(dtype))
            start = round_up(start + size, ALIGNMENT)
        self._known[parts] = requests, buffers
        return requests, buffers
