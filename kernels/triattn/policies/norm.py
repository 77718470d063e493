"""Key magnitude weighted by how far queries spread around their mean (TriAttention, arXiv 2604.04921)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from triattn.policies.context import Round


@dataclass(frozen=True)
class Norm:
    """S_h(k) = Σ_f s² (a_f − |μ_f|) |k_f| per query head; without `residual` the coefficient is a_f = E|q_f|."""

    residual: bool
    per_query_head = True
    needs_statistics = True
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [query_heads, N]."""
        model, stats = ctx.model, ctx.statistics
        assert stats is not None
        size = model.bands(ctx.keys(layer)).abs().repeat_interleave(model.group, dim=0)
        weight = stats.q_abs_mean[layer]
        if self.residual:
            weight = weight - torch.hypot(stats.q_mean_real[layer], stats.q_mean_imag[layer])
        return model.attention_scaling**2 * torch.einsum("hf,hnf->hn", weight.to(size.device), size)
