"""A round in plain torch: the oracle of the Triton kernels, and what runs on CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from triattn.ops.interface import FIELDS, LayerCache, RoundBatch, planes
from triattn.ops.queries import QueryRing
from triattn.policies import ModelShape, Policy, QueryStatistics, Round
from triattn.policies.context import Memory


def moves(kept: Tensor, keep: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """What compacts kept [..., N] bool, `keep` of each row or all, into entries [0, keep) of its row.

    Kept entries below `keep` stay; those above move, in order, into the holes, in order: the rows' indices and the
    source entry of each move, then its destination entry; int64 [m] each, by row.
    """
    *rows, source = kept[..., keep:].nonzero(as_tuple=True)
    holes = (~kept[..., :keep]).nonzero(as_tuple=True)
    return (*rows, source + keep), holes[-1][: len(source)]


@dataclass(frozen=True)
class TorchRounds:
    """Rounds of `policy` on `caches` (one a local layer) by plain loops.

    `positions` is int32 [layers, kv_heads, num_blocks, block_size]: the logical position of each physical slot,
    valid for the rows that the last round kept. It stays valid when blocks change hands, because a request's
    entries beyond its last round are implied.
    """

    caches: Sequence[LayerCache]
    positions: Tensor
    shape: ModelShape
    policy: Policy
    statistics: QueryStatistics | None = None
    memory: Tensor | None = None
    """float32 [planes or more, *positions.shape]: what terms remember of entries; made here where it is not given."""
    ring: QueryRing | None = None

    def __post_init__(self) -> None:
        policy = self.policy.with_statistics(self.statistics)
        object.__setattr__(self, "policy", policy)
        if self.memory is None:
            self.remember_in(planes(self.positions, self.planes))

    @property
    def planes(self) -> int:
        """See Rounds."""
        return len(self.policy.remembered)

    def remember_in(self, memory: Tensor) -> None:
        """See Rounds."""
        object.__setattr__(self, "memory", memory)

    def warm_up(self) -> None:
        """Nothing to prepare."""

    def run(self, batch: RoundBatch) -> None:
        """See Rounds. Reads the batch on the host."""
        recents = batch.recent.tolist() if batch.recent is not None else [None] * batch.size
        for values, recent in zip(batch.fields.tolist(), recents, strict=True):
            fields = dict(zip(FIELDS, values, strict=True))
            if fields["keep"] < fields["resident"]:
                self._compact(fields, batch.block_tables[fields["row"]], recent)

    def copy_blocks(self, pairs: Tensor) -> None:
        """See Rounds."""
        source, destination = pairs.long().unbind(1)
        for cache in self.caches:
            cache.copy_blocks(source, destination)
        self.positions[:, :, destination] = self.positions[:, :, source]
        self.memory[: self.planes, :, :, destination] = self.memory[: self.planes, :, :, source]

    def select(
        self, fields: dict[str, int], table: Tensor, recent: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Kept entries, bool, and positions, int64, of one request: [layers, kv_heads, resident] each."""
        blocks, offsets = self._slots(fields, table)
        index = torch.arange(fields["resident"], device=blocks.device)
        stored = self.positions[:, :, blocks, offsets].long()
        positions = torch.where(index < fields["previous"], stored, index + fields["evicted"])
        terms = self.policy.remembered
        memory = Memory(
            fields["known"], lambda term, layer: self.memory[terms.index(term), layer][:, blocks, offsets]
        )
        ring, computed = self.ring, fields["computed"]
        queries = None
        if ring is not None and recent is not None:
            row, count = recent
            queries = lru_cache(maxsize=1)(lambda layer: ring.read(layer, row, computed, count))
        ctx = Round(
            model=self.shape,
            # Each term of a layer asks for its keys again.
            keys=lru_cache(maxsize=1)(lambda layer: self._entries("k", layer, blocks, offsets)),
            values=lru_cache(maxsize=1)(lambda layer: self._entries("v", layer, blocks, offsets)),
            positions=positions,
            computed=computed,
            prompt_len=fields["prompt_len"],
            pin_prompt=bool(fields["pin_prompt"]),
            statistics=self.statistics,
            memory=memory,
            queries=queries,
        )
        kept = self.policy.select(ctx, fields["keep"])
        for (term, layer), values in memory.found.items():
            self.memory[terms.index(term), layer][:, blocks, offsets] = values
        return kept, positions

    def _compact(self, fields: dict[str, int], table: Tensor, recent: Sequence[int] | None) -> None:
        keep = fields["keep"]
        kept, positions = self.select(fields, table, recent)
        blocks, offsets = self._slots(fields, table)
        (layers, heads, source), destination = moves(kept, keep)
        first = 0
        # Moves come layer by layer.
        for cache, count in zip(
            self.caches, layers.bincount(minlength=len(self.caches)).tolist(), strict=True
        ):
            part = slice(first, first + count)
            of, to = source[part], destination[part]
            cache.move(heads[part], (blocks[of], offsets[of]), (blocks[to], offsets[to]))
            first += count
        positions[layers, heads, destination] = positions[layers, heads, source]
        self.positions[:, :, blocks[:keep], offsets[:keep]] = positions[..., :keep].int()
        remembered = self.memory[: self.planes]
        moved = remembered[:, layers, heads, blocks[source], offsets[source]]
        remembered[:, layers, heads, blocks[destination], offsets[destination]] = moved

    def _slots(self, fields: dict[str, int], table: Tensor) -> tuple[Tensor, Tensor]:
        """Block and offset of each resident row, int64 [resident]."""
        size = self.positions.shape[-1]
        index = torch.arange(fields["resident"], device=table.device)
        return table[index // size].long(), index % size

    def _entries(self, which: str, layer: int, blocks: Tensor, offsets: Tensor) -> Tensor:
        cache = self.caches[layer]
        scale = cache.key_scale if which == "k" else cache.value_scale
        return cache.read(which, blocks, offsets).float() * scale
