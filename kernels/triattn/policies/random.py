"""Uniform noise from a hash, so that every rank, a CPU and a GPU draw the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triattn.policies.context import Round

_MASK = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """The finalizer of MurmurHash3 (32 bits) on int64 tensors that hold uint32 values."""
    x = x ^ (x >> 16)
    # The low 32 bits of a product are right even where the 64-bit product wraps.
    x = (x * 0x85EBCA6B) & _MASK
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def uniform(seed: Tensor, computed: Tensor, layer: Tensor, head: Tensor, position: Tensor) -> Tensor:
    """float32 in [0, 1), a multiple of 2⁻²⁴, from int64 tensors that broadcast: each input is mixed in turn."""
    state = mix(seed & _MASK)
    for value in (computed, layer, head, position):
        state = mix((state + 0x9E3779B9 & _MASK) ^ (value & _MASK))
    return (state >> 8).float() * 2.0**-24


@dataclass(frozen=True)
class Random:
    """Uniform in [0, 1) from (seed, C, layer, KV head, position), the two in global indices, per KV head.

    Where layers or heads share one choice the noise is shared too: their index is left out (Random Attention,
    arXiv 2609.03430, draws anew at each round).
    """

    seed: int
    selection: Literal["per_layer_per_head", "per_head", "union"]
    per_query_head = False
    needs_statistics = False
    reads_keys = False
    names_heads = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]."""
        position = ctx.positions[layer]
        layer_id = ctx.model.layer_ids[layer] + 1 if self.selection == "per_layer_per_head" else 0
        heads = [0 if self.selection == "union" else h + 1 for h in ctx.model.kv_head_ids]

        def tensor(value: int | list[int]) -> Tensor:
            return torch.tensor(value, dtype=torch.int64, device=position.device)

        return uniform(
            tensor(self.seed), tensor(ctx.computed), tensor(layer_id), tensor(heads)[:, None], position
        )
