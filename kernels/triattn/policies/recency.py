"""The newest tokens are kept (StreamingLLM, arXiv 2309.17453, with pinned first tokens)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from triattn.policies.context import Round


@dataclass(frozen=True)
class Recency:
    """S(k) = logical position, per KV head. Exact below position 2²⁴."""

    per_query_head = False
    needs_statistics = False
    reads_keys = False

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]."""
        return ctx.positions[layer].float()
