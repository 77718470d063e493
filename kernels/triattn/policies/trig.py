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
        keys = ctx.keys(layer)[..., : model.rotary_dim].float()
        centre = torch.complex(stats.q_mean_real[layer], stats.q_mean_imag[layer]).to(keys.device)
        # Angles in float64: at position 100,000 a float32 product is off by hundredths of a radian.
        times = torch.tensor([ctx.computed + o for o in offsets(self.max_offset)], dtype=torch.float64)
        angles = times[:, None] * model.inv_freq.double().cpu()
        turn = torch.polar(torch.ones_like(angles), angles)
        if self.aggregation == "mean":
            # The score is linear in the turned query.
            turn = turn.mean(dim=0, keepdim=True)
        turned = centre[:, None] * turn.to(torch.complex64).to(keys.device)
        # Re(c conj(k)), summed over the bands, is a dot product of their parts as the key has them.
        if model.pairing == "half":
            queries = torch.cat([turned.real, turned.imag], dim=-1)
        else:
            queries = torch.view_as_real(turned).flatten(-2)
        # [kv_heads, group * offsets, N]
        each = queries.reshape(model.kv_heads, -1, model.rotary_dim) @ keys.transpose(1, 2)
        best = each.unflatten(1, (model.group, -1)).amax(dim=2)
        return model.attention_scaling**2 * best.flatten(0, 1)
