"""What a round works on: paged caches, the table of positions, and the batch of planned requests.

The plain-torch path and the Triton path take the same arguments and leave the same cache behind.

Notation, per request: C logical length; E entries evicted before this round; R = C − E resident entries, in rows
[0, R) of its block table (row i is in block `table[i // block_size]` at offset `i % block_size`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Plan(Protocol):
    """What the scheduler decided for one request (`triattn.plan.RoundPlan`)."""

    @property
    def computed(self) -> int: ...
    @property
    def resident(self) -> int: ...
    @property
    def previous(self) -> int: ...
    @property
    def evicted(self) -> int: ...
    @property
    def keep(self) -> int: ...
    @property
    def prompt_len(self) -> int: ...
    @property
    def pin_prompt(self) -> bool: ...
    @property
    def known(self) -> int: ...


FIELDS = ("row", "resident", "previous", "evicted", "keep", "computed", "prompt_len", "pin_prompt", "known")


@dataclass(frozen=True)
class RoundBatch:
    """The requests that are compacted in one step.

    `block_tables` is int32 [rows, blocks]; `fields` int32 [requests, 9], the columns named by FIELDS: `row` is the
    request's row of `block_tables`; entries of row index ≥ `previous` have position index + E, those below have
    theirs in the positions table, and those below `known` what terms remember of them. `recent` is int32 [requests, 2]
    where the engine keeps queries: the request's row of the ring, and how many of its last queries are there. The
    host's own knowledge of the batch sizes the launches: `max_resident` is the largest R, `max_evicted` the largest
    R − keep.
    """

    block_tables: Tensor
    fields: Tensor
    max_resident: int
    max_evicted: int
    recent: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of requests."""
        return self.fields.shape[0]

    @staticmethod
    def rows_of(plans: Sequence[Plan], rows: Sequence[int]) -> list[list[int]]:
        """The contents of `fields`, for a caller that stages them itself (through pinned memory)."""
        return [
            [
                row,
                p.resident,
                p.previous,
                p.evicted,
                p.keep,
                p.computed,
                p.prompt_len,
                int(p.pin_prompt),
                p.known,
            ]
            for row, p in zip(rows, plans, strict=True)
        ]

    @classmethod
    def of(
        cls,
        plans: Sequence[Plan],
        block_tables: Tensor,
        rows: Sequence[int],
        recent: Sequence[tuple[int, int]] | None = None,
    ) -> RoundBatch:
        """Stage plans beside the block tables; request i has row `rows[i]` of them, and of the ring `recent[i]`.

        Never waits for the device: the copy goes through pinned memory there.
        """

        def staged(values: Sequence[Sequence[int]], columns: int) -> Tensor:
            host = torch.tensor(values, dtype=torch.int32).reshape(len(plans), columns)
            if block_tables.is_cuda:
                host = host.pin_memory()
            return host.to(block_tables.device, non_blocking=True)

        return cls(
            block_tables=block_tables,
            fields=staged(cls.rows_of(plans, rows), len(FIELDS)),
            max_resident=max((p.resident for p in plans), default=0),
            max_evicted=max((p.resident - p.keep for p in plans), default=0),
            recent=None if recent is None else staged(recent, 2),
        )


class LayerCache(Protocol):
    """One layer's paged K and V. `blocks` and `offsets` are int64 [N]; heads are local."""

    @property
    def key_scale(self) -> Tensor | float: ...
    @property
    def value_scale(self) -> Tensor | float: ...
    def read(self, which: str, blocks: Tensor, offsets: Tensor) -> Tensor:
        """Stored elements of K (`which` = "k") or V ("v"): [kv_heads, N, head_dim] of the cache's dtype."""
        ...

    def move(self, heads: Tensor, source: tuple[Tensor, Tensor], destination: tuple[Tensor, Tensor]) -> None:
        """Copy K and V of single heads' entries; heads, and blocks and offsets of both, int64 [N]. All are read before
        any is written."""
        ...

    def copy_blocks(self, source: Tensor, destination: Tensor) -> None:
        """Copy whole blocks, K and V of all heads; int64 [n] each."""
        ...


def planes(positions: Tensor, count: int) -> Tensor:
    """Room for what `count` terms remember of each entry, beside its position: float32 [count, *positions.shape]."""
    return torch.zeros((count, *positions.shape), dtype=torch.float32, device=positions.device)


@dataclass(frozen=True)
class StridedCache:
    """K and V as views [num_blocks, kv_heads, block_size, head_dim] with any strides.

    An fp8 cache is a view of dtype float8_e4m3fn; what it means is the stored number times the scale.
    """

    k: Tensor
    v: Tensor
    key_scale: Tensor | float = 1.0
    value_scale: Tensor | float = 1.0

    def __post_init__(self) -> None:
        if self.k.dim() != 4 or self.k.shape[:3] != self.v.shape[:3] or self.k.dtype != self.v.dtype:
            raise ValueError(
                f"K {list(self.k.shape)} {self.k.dtype} and V {list(self.v.shape)} {self.v.dtype}"
            )

    def _part(self, which: str) -> Tensor:
        part = self.k if which == "k" else self.v
        # Moves are of bytes; torch does not index float8 on every device.
        return part.view(torch.uint8) if part.dtype.itemsize == 1 else part

    def read(self, which: str, blocks: Tensor, offsets: Tensor) -> Tensor:
        """See LayerCache."""
        part = self._part(which)
        return part[blocks, :, offsets].transpose(0, 1).view(self.k.dtype)

    def move(self, heads: Tensor, source: tuple[Tensor, Tensor], destination: tuple[Tensor, Tensor]) -> None:
        """See LayerCache."""
        for which in ("k", "v"):
            part = self._part(which)
            part[destination[0], heads, destination[1]] = part[source[0], heads, source[1]]

    def copy_blocks(self, source: Tensor, destination: Tensor) -> None:
        """See LayerCache."""
        for which in ("k", "v"):
            part = self._part(which)
            part[destination] = part[source]


@dataclass(frozen=True)
class IndexedCache:
    """K and V as permuted elements of one flat piece of memory for each (block, head).

    `data` is [num_blocks, kv_heads, S]; `k_map` and `v_map` are int64 [block_size, head_dim] into S. This is how
    vLLM's CPU attention packs a block for the matrix instructions of the machine.
    """

    data: Tensor
    k_map: Tensor
    v_map: Tensor
    key_scale: Tensor | float = 1.0
    value_scale: Tensor | float = 1.0

    def _map(self, which: str) -> Tensor:
        return self.k_map if which == "k" else self.v_map

    def read(self, which: str, blocks: Tensor, offsets: Tensor) -> Tensor:
        """See LayerCache."""
        heads = torch.arange(self.data.shape[1])[:, None, None]
        return self.data[blocks[None, :, None], heads, self._map(which)[offsets][None]]

    def move(self, heads: Tensor, source: tuple[Tensor, Tensor], destination: tuple[Tensor, Tensor]) -> None:
        """See LayerCache."""
        heads = heads[:, None]
        for which in ("k", "v"):
            of = self._map(which)
            entries = self.data[source[0][:, None], heads, of[source[1]]]
            self.data[destination[0][:, None], heads, of[destination[1]]] = entries

    def copy_blocks(self, source: Tensor, destination: Tensor) -> None:
        """See LayerCache."""
        self.data[destination] = self.data[source]


class Rounds(Protocol):
    """Executes rounds of one policy on one rank's caches."""

    @property
    def planes(self) -> int:
        """How many planes of memory its terms need."""
        ...

    def remember_in(self, memory: Tensor) -> None:
        """Use this memory: float32 [planes or more, *positions.shape]. What was remembered elsewhere is forgotten."""
        ...

    def warm_up(self) -> None:
        """Make everything that a round can need, so that none waits for a compiler."""
        ...

    def run(self, batch: RoundBatch) -> None:
        """Score, select and compact every request of the batch in place, on the current stream."""
        ...

    def copy_blocks(self, pairs: Tensor) -> None:
        """Copy blocks, with their positions, in every layer: int32 [n, 2] of (source, destination)."""
        ...
