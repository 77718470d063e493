"""Keys that no combination of the others stands in for: leverage scores (Compactor, arXiv 2507.08143)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from triattn.policies.context import Round
from triattn.policies.random import uniform
from triattn.policies.superseded import rotation_undone

SKETCH = 48
"""Most dimensions in which keys are compared, as in kvpress."""
RIDGE = 1e-3
"""Regularisation, in units of the mean variance of a dimension: what keys do not span gets no weight."""
FLOOR = 1e-20
"""Smallest variance that this is a part of."""


def sketch(seed: int, head_dim: int) -> Tensor:
    """Standard normal numbers, float32 [head_dim, SKETCH]; of a head with no more dimensions than that, the identity.

    From the hash of the random term by Box and Muller's method in float64: the same on every rank and machine, in
    every layer and head.
    """
    if head_dim <= SKETCH:
        return torch.eye(head_dim)
    row = torch.arange(head_dim)[:, None]
    column = torch.arange(SKETCH)
    radius, angle = (
        uniform(torch.tensor(seed), torch.tensor(0), torch.tensor(which), column, row).double()
        for which in (0, 1)
    )
    # The middle of a cell of the hash: never 0.
    normal = (-2 * (radius + 2.0**-25).log()).sqrt() * (math.tau * angle).cos()
    return normal.float()


@dataclass(frozen=True)
class Leverage:
    """S = xᵀ (XᵀX + λI)⁻¹ x, per KV head: x is the key with its rotation undone, less the mean, times the sketch.

    λ is RIDGE times the mean of the diagonal of XᵀX. A key that is not finite scores as not a number and is left out
    of X and of the mean.
    """

    seed: int
    per_query_head = False
    needs_statistics = False
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]."""
        keys = rotation_undone(ctx.model, ctx.keys(layer), ctx.positions[layer]).double()
        x = keys @ sketch(self.seed, ctx.model.head_dim).double().to(keys.device)
        finite = torch.isfinite(x).all(dim=-1, keepdim=True)
        x = torch.where(finite, x, 0)
        mean = x.sum(dim=1, keepdim=True) / finite.sum(dim=1, keepdim=True).clamp(min=1)
        x = torch.where(finite, x - mean, 0)
        gram = x.transpose(1, 2) @ x
        ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(-1).clamp(min=FLOOR)
        gram = gram + ridge[:, None, None] * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
        factor = torch.linalg.cholesky_ex(gram).L
        solved = torch.linalg.solve_triangular(factor, x.transpose(1, 2), upper=False)
        return torch.where(finite[..., 0], solved.square().sum(dim=1), torch.nan).float()
