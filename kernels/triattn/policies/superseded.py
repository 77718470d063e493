"""What a later token repeats is replaceable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triattn.policies.context import ModelShape, Round
from triattn.policies.keydiff import EPSILON


def rotation_undone(model: ModelShape, keys: Tensor, positions: Tensor) -> Tensor:
    """Cached keys float32 [..., N, D] as they were before the rotary embedding at `positions` [..., N]."""
    if model.rotary_dim == 0:
        return keys
    turned = model.bands(keys) * model.turns_back(positions)
    if model.pairing == "half":
        rotary = torch.cat([turned.real, turned.imag], dim=-1)
    else:
        rotary = torch.view_as_real(turned).flatten(-2)
    return torch.cat([rotary, keys[..., model.rotary_dim :]], dim=-1)


@dataclass(frozen=True)
class Superseded:
    """S(i) = −max over later j of cos(x_i, x_j), per KV head.

    x is the key with its rotation undone, or the value, as a unit vector in float16. j are all entries that came later,
    evicted since or not, for as long as the policy is in force: a round compares with those alone that are new to it,
    and the maximum is remembered (`Memory`). 1 where nothing later has come. A similarity that is not a number counts
    as none; an entry that holds one scores as one.
    """

    space: Literal["key", "value"]
    per_query_head = False
    needs_statistics = False
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]."""
        position = ctx.positions[layer]
        if self.space == "key":
            entries = rotation_undone(ctx.model, ctx.keys(layer), position)
        else:
            entries = ctx.values(layer)
        unit = torch.nn.functional.normalize(entries, dim=-1, eps=EPSILON).half().float()
        known = ctx.memory.known if ctx.memory else 0
        best = torch.full(unit.shape[:2], -1.0, dtype=torch.float32, device=unit.device)
        if ctx.memory and known:
            best[:, :known] = ctx.memory.stored(self, layer)[:, :known]
        new, when = unit[:, known:].transpose(1, 2), position[:, None, known:]
        # Entries that are no number are later than none.
        lost = unit.sum(dim=-1).isnan()
        position, when = position.int(), torch.where(lost[:, None, known:], -1, when).int()
        # Rows at a time: a whole matrix of similarities would take N² floats a head.
        for first in range(0, unit.shape[1] if new.shape[2] else 0, 1024):
            rows = slice(first, first + 1024)
            like = unit[:, rows] @ new
            found = like.masked_fill_(when <= position[:, rows, None], -1.0).amax(dim=-1)
            best[:, rows] = torch.maximum(best[:, rows], found.masked_fill_(lost[:, rows], -1.0))
        if ctx.memory:
            ctx.memory.found[self, layer] = best
        return torch.where(lost, torch.nan, -best)
