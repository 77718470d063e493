"""A round in plain torch: the oracle of the Triton kernels, and what runs on CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from triattn.ops.interface import FIELDS, LayerCache, RoundBatch, planes
from triattn.policies import ModelShape, Policy, QueryStatistics, Round
from triattn.policies.context import Memory


def moves(kept: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Sources and destinations, row indices int64 [m] each, that compact kept [N] bool into rows [0, keep).

    Kept entries below `keep` stay; those above move, in order, into the holes, in order.
    """
    source = kept[keep:].nonzero().flatten() + keep
    destination = (~kept[:keep]).nonzero().flatten()
    return source, destination[: len(source)]


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
        for values in batch.fields.tolist():
            fields = dict(zip(FIELDS, values, strict=True))
            if fields["keep"] < fields["resident"]:
                self._compact(fields, batch.block_tables[fields["row"]])

    def copy_blocks(self, pairs: Tensor) -> None:
        """See Rounds."""
        source, destination = pairs.long().unbind(1)
        for cache in self.caches:
            cache.copy_blocks(source, destination)
        self.positions[:, :, destination] = self.positions[:, :, source]
        self.memory[: self.planes, :, :, destination] = self.memory[: self.planes, :, :, source]

    def select(self, fields: dict[str, int], table: Tensor) -> tuple[Tensor, Tensor]:
        """Kept entries, bool, and positions, int64, of one request: [layers, kv_heads, resident] each."""
        blocks, offsets = self._slots(fields, table)
        index = torch.arange(fields["resident"], device=blocks.device)
        stored = self.positions[:, :, blocks, offsets].long()
        positions = torch.where(index < fields["previous"], stored, index + fields["evicted"])
        terms = self.policy.remembered
        memory = Memory(
            fields["known"], lambda term, layer: self.memory[terms.index(term), layer][:, blocks, offsets]
        )
        ctx = Round(
            model=self.shape,
            # Each term of a layer asks for its keys again.
            keys=lru_cache(maxsize=1)(lambda layer: self._entries("k", layer, blocks, offsets)),
            values=lru_cache(maxsize=1)(lambda layer: self._entries("v", layer, blocks, offsets)),
            positions=positions,
            computed=fields["computed"],
            prompt_len=fields["prompt_len"],
            pin_prompt=bool(fields["pin_prompt"]),
            statistics=self.statistics,
            memory=memory,
        )
        kept = self.policy.select(ctx, fields["keep"])
        for (term, layer), values in memory.found.items():
            self.memory[terms.index(term), layer][:, blocks, offsets] = values
        return kept, positions

    def _compact(self, fields: dict[str, int], table: Tensor) -> None:
        keep = fields["keep"]
        kept, positions = self.select(fields, table)
        blocks, offsets = self._slots(fields, table)
        for layer, cache in enumerate(self.caches):
            keys, values = (cache.read(w, blocks, offsets) for w in ("k", "v"))
            for head in range(self.shape.kv_heads):
                source, destination = moves(kept[layer, head], keep)
                where = (blocks[destination], offsets[destination])
                cache.write("k", head, *where, keys[head, source])
                cache.write("v", head, *where, values[head, source])
                row = positions[layer, head].clone()
                row[destination] = row[source]
                self.positions[layer, head, blocks[:keep], offsets[:keep]] = row[:keep].int()
                remembered = self.memory[: self.planes, layer, head]
                remembered[:, *where] = remembered[:, blocks[source], offsets[source]]

    def _slots(self, fields: dict[str, int], table: Tensor) -> tuple[Tensor, Tensor]:
        """Block and offset of each resident row, int64 [resident]."""
        size = self.positions.shape[-1]
        index = torch.arange(fields["resident"], device=table.device)
        return table[index // size].long(), index % size

    def _entries(self, which: str, layer: int, blocks: Tensor, offsets: Tensor) -> Tensor:
        cache = self.caches[layer]
        scale = cache.key_scale if which == "k" else cache.value_scale
        return cache.read(which, blocks, offsets).float() * scale
