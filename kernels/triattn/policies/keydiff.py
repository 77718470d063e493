"""Keys unlike the others are kept (KeyDiff, arXiv 2504.15364)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from triattn.policies.context import Round

EPSILON = 1e-12
"""Smallest length that a vector is divided by."""


@dataclass(frozen=True)
class KeyDiff:
    """S(k) = −cos(k, mean of k/|k| over all resident keys), per KV head."""

    per_query_head = False
    needs_statistics = False
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]."""
        unit = torch.nn.functional.normalize(ctx.keys(layer), dim=-1, eps=EPSILON)
        anchor = torch.nn.functional.normalize(unit.mean(dim=1), dim=-1, eps=EPSILON)
        return -torch.einsum("hnd,hd->hn", unit, anchor)
