"""Expected future attention of a cached key, from the mean pre-rotary query (TriAttention, arXiv 2604.04921)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triattn.policies.context import Round


def offsets(max_offset: int) -> list[int]:
    """Future distances at which the score is taken: the powers of two from 1 up to `max_offset`, in tokens."""
    return [1 << e for e in range(max_offset.bit_length())]


@dataclass(frozen=True)
class Trig:
    """S_h(k) = agg_o Σ_f s² Re(μ_f conj(k_f) e^{i t ω_f}), t = C + o, per query head; agg is mean or max."""

    aggregation: Literal["mean", "max"]
    max_offset: int
    per_query_head = True
    needs_statistics = True
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [query_heads, N]."""
        model, stats = ctx.model, ctx.statistics
        assert stats is not None
        keys = model.bands(ctx.keys(layer)).repeat_interleave(model.group, dim=0)
        centre = torch.complex(stats.q_mean_real[layer], stats.q_mean_imag[layer]).to(keys.device)
        # Angles in float64: at position 100,000 a float32 product is off by hundredths of a radian.
        times = torch.tensor([ctx.computed + o for o in offsets(self.max_offset)], dtype=torch.float64)
        angles = times[:, None] * model.inv_freq.double().cpu()
        turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex64).to(keys.device)
        scale = model.attention_scaling**2
        result = None
        for step in turn:
            # Re(c conj(k)), summed over the bands.
            c = centre * step
            term = torch.einsum("hf,hnf->hn", c.real, keys.real) + torch.einsum(
                "hf,hnf->hn", c.imag, keys.imag
            )
            if result is None:
                result = term
            elif self.aggregation == "mean":
                result = result + term
            else:
                result = torch.maximum(result, term)
        assert result is not None
        return scale * (result / len(turn) if self.aggregation == "mean" else result)
