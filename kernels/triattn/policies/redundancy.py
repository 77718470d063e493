"""Keys that resemble many others go first (R-KV, arXiv 2505.24133)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from triattn.policies.context import Round
from triattn.policies.keydiff import EPSILON

ALIKE = 0.5
"""Cosine above which two keys are taken for repetitions of one another, as in R-KV."""


@dataclass(frozen=True)
class Redundancy:
    """S = −softmax over tokens j of the mean over i of c_ij, per KV head.

    c_ij is the cosine of the cached keys i and j, but 0 where i = j, and 0 where j is the latest token that i
    resembles by more than ALIKE: so the newest of what repeats is spared. A key that holds a number that is not
    finite is like nothing and scores as not a number.
    """

    per_query_head = False
    needs_statistics = False
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]."""
        keys, position = ctx.keys(layer), ctx.positions[layer]
        finite = torch.isfinite(keys).all(dim=-1)
        unit = torch.nn.functional.normalize(torch.where(finite[..., None], keys, 0), dim=-1, eps=EPSILON)
        count = unit.shape[1]
        total = torch.zeros(unit.shape[:2], dtype=torch.float64, device=unit.device)
        number = torch.arange(count, device=unit.device)
        # Rows at a time: a whole matrix of similarities would take N² floats a head.
        for first in range(0, count, 1024):
            rows = number[first : first + 1024]
            like = unit[:, rows] @ unit.transpose(1, 2)
            like[:, rows - first, rows] = 0.0
            alike = torch.where(like > ALIKE, position[:, None], -1)
            latest = alike.argmax(dim=-1, keepdim=True)
            some = alike.gather(-1, latest) >= 0
            kept = torch.where(some, 0.0, like.gather(-1, latest))
            total += like.scatter_(-1, latest, kept).double().sum(dim=1)
        mean = torch.where(finite, total / count, -torch.inf)
        return torch.where(finite, -mean.softmax(dim=-1).float(), torch.nan)
