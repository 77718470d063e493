"""Places that are given away before the best scores compete for the rest: a reserve, and quotas by age."""

from __future__ import annotations

import torch
from torch import Tensor

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
    # Eligible entries first, so that a score of -inf among them is not mistaken for a barred one; the best first.
    order = torch.sort(by, dim=-1, descending=True, stable=True).indices
    order = order.gather(-1, torch.sort(~eligible.gather(-1, order), dim=-1, stable=True).indices)
    places = torch.minimum(places, eligible.sum(dim=-1))[..., None]
    best = torch.arange(scores.shape[-1], device=scores.device) < places
    return scores.masked_fill(torch.zeros_like(best).scatter_(-1, order, best), torch.inf)


def segment_of(positions: Tensor, first: int, last: int, count: int) -> Tensor:
    """Segment in [0, count) of each position, int64: [first, last) cut evenly; others are clamped."""
    return ((positions - first) * count // max(last - first, 1)).clamp(0, count - 1)
