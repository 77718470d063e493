"""Places that are given away before the best scores compete for the rest: a reserve, and quotas by age."""

from __future__ import annotations

import torch
from torch import Tensor

from triattn.policies.select import keep_highest

ONE = 65536
"""Shares are whole numbers of this part, so that every device counts the same."""


def free_places(scores: Tensor, keep: int) -> Tensor:
    """Places that entries of score +inf leave of `keep`: int64 [...] of scores [..., N]."""
    return (keep - torch.isposinf(scores).sum(dim=-1)).clamp(min=0)


def promote(scores: Tensor, by: Tensor, places: Tensor, among: Tensor | None = None) -> Tensor:
    """`scores` [..., N] with the highest `places` [...] of `by` set to +inf: of those not +inf yet, and `among`."""
    eligible = ~torch.isposinf(scores)
    if among is not None:
        eligible = eligible & among
    flat = scores.reshape(-1, scores.shape[-1]).clone()
    for row, order, count, allowed in zip(
        flat, by.reshape(flat.shape), places.flatten().tolist(), eligible.reshape(flat.shape), strict=True
    ):
        index = allowed.nonzero().flatten()
        # Rows of eligible entries only, so that a score of -inf among them is not mistaken for a barred one.
        row[index[keep_highest(order[index], count)]] = torch.inf
    return flat.reshape(scores.shape)


def segment_of(positions: Tensor, first: int, last: int, count: int) -> Tensor:
    """Segment in [0, count) of each position, int64: [first, last) cut evenly; others are clamped."""
    return ((positions - first) * count // max(last - first, 1)).clamp(0, count - 1)
