"""Which entries stay, given their scores."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_highest(scores: Tensor, keep: int) -> Tensor:
    """The `keep` highest of each row [..., N] as bool [..., N]; among equals the lower index is kept.

    All are kept where a row has no more than `keep`.
    """
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    kept = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return kept.scatter_(-1, order[..., :keep], True)
