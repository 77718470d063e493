"""How large an entry's key or value is: one number an entry, whatever the queries."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from triattn.policies.context import Round

LOG_FLOOR = 1e-20
"""Smallest length whose logarithm is taken."""


@dataclass(frozen=True)
class KeyNorm:
    """S = ‖k‖, per KV head (arXiv 2406.11430 keeps the short ones: a negative weight)."""

    per_query_head = False
    needs_statistics = False
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]."""
        return ctx.keys(layer).norm(dim=-1)


@dataclass(frozen=True)
class ValueNorm:
    """S = ‖v‖ or log ‖v‖, per KV head."""

    log: bool
    per_query_head = False
    needs_statistics = False
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]."""
        length = ctx.values(layer).norm(dim=-1)
        return length.clamp(min=LOG_FLOOR).log() if self.log else length


@dataclass(frozen=True)
class ValueRange:
    """S = max v − min v over the elements of a value, per KV head (VaSE, arXiv 2606.03928)."""

    per_query_head = False
    needs_statistics = False
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]."""
        values = ctx.values(layer)
        return values.amax(dim=-1) - values.amin(dim=-1)
