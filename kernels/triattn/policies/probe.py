"""A linear probe: what calibration found in a key to foretell how much later queries miss its token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from triattn.policies.context import Round
from triattn.policies.superseded import rotation_undone


@dataclass(frozen=True)
class Probe:
    """S(i) = w · k_i, k the key with its rotation undone, w learned for each layer and KV head.

    As KVzap (arXiv 2601.07891) learns scores from hidden states, but from what the cache holds.
    """

    per_query_head = False
    needs_statistics = True
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]. Needs `learned_probe`, float32 [layers, kv_heads, head_dim]."""
        keys = rotation_undone(ctx.model, ctx.keys(layer), ctx.positions[layer])
        probe = ctx.statistics.learned_probe[layer].to(keys.device)  # type: ignore[union-attr]
        return (keys @ probe[..., None])[..., 0]
