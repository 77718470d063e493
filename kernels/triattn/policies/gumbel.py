"""Gumbel noise: the highest of log-probabilities plus it are a draw without replacement (Gumbel-top-k)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triattn.policies.context import Round
from triattn.policies.random import Random

STREAM = 0x5BD1E995
"""The seed's bits that differ from those of the random term, so that the two are independent."""


@dataclass(frozen=True)
class Gumbel:
    """S = −log(−log u), u of triattn.policies.random from another stream (arXiv 1903.06059), per KV head."""

    seed: int
    selection: Literal["per_layer_per_head", "per_head", "union"]
    per_query_head = False
    needs_statistics = False
    reads_keys = False
    names_heads = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]."""
        uniform = Random(self.seed ^ STREAM, self.selection).score(ctx, layer)
        # The middle of each of the 2²⁴ cells: never 0 or 1 in float64.
        return -torch.log(-torch.log(uniform.double() + 2.0**-25)).float()
