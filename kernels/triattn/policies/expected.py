"""Attention that normally distributed queries are expected to pay (Expected Attention, arXiv 2510.00636)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from triattn.policies.context import Round

SINKS = 4
"""First positions that take no part in the softmax, as in kvpress: the attention that they draw says nothing of the
others."""


@dataclass(frozen=True)
class Expected:
    """S(k) = log mean_h softmax_k(L_h), over the query heads h of a KV head and the resident keys k past SINKS:

        L_h(k) = k·q̄_h / √d + kᵀ Σ_h k / 2d

    is the logarithm of E e^(q·k/√d) for queries N(q̄_h, Σ_h). q̄ and Σ are those of calibration, turned by the mean
    rotation of the `horizon` positions from C on. Σ holds, of each frequency band, the covariance of the two
    elements that are rotated together, which any rotation carries into itself; covariances between bands, and
    dimensions that are not rotated, are left out. A key whose L is not finite takes no part in the softmax.

    `q_covariance` of the statistics, float32 [3, layers, query heads, F]: variance of a band's real part, of its
    imaginary part, and their covariance.
    """

    horizon: int
    per_query_head = False
    needs_statistics = True
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]."""
        model, stats = ctx.model, ctx.statistics
        assert stats is not None
        keys = model.bands(ctx.keys(layer))
        device = keys.device
        # Angles in float64: at position 100,000 a float32 product is off by hundredths of a radian.
        now = ctx.computed * model.inv_freq.double().cpu()
        turn = torch.polar(torch.ones_like(now), now) * mean_turn(model.inv_freq, self.horizon)
        # Keys in the cache carry the scaling of cos and sin already, queries get it here.
        turn = (turn * model.attention_scaling).to(torch.complex64).to(device)
        centre = torch.complex(stats.q_mean_real[layer], stats.q_mean_imag[layer]).to(device) * turn
        real, imag, both = stats.q_covariance[:, layer].to(device)  # type: ignore[attr-defined]
        # Of a complex number z with mean 0: E|z|² and E z², which turn by |turn|² and turn².
        size = (real + imag) * turn.abs().square()
        ellipse = torch.complex(real - imag, 2 * both) * turn.square()
        keys = keys.repeat_interleave(model.group, dim=0)
        square = keys.square()
        mean = torch.einsum("hf,hnf->hn", centre.conj(), keys).real
        # kᵀ Σ k = Σ_f (E|z|² |k|² + Re(E z² conj k²)) / 2.
        spread = torch.einsum("hf,hnf->hn", size, keys.abs().square())
        spread = (spread + torch.einsum("hf,hnf->hn", ellipse.conj(), square).real) / 2
        logits = mean / math.sqrt(model.head_dim) + spread / (2 * model.head_dim)
        position = ctx.positions[layer].repeat_interleave(model.group, dim=0)
        counted = torch.isfinite(logits) & (position >= SINKS)
        whole = torch.where(counted, logits, -torch.inf).logsumexp(dim=-1, keepdim=True)
        whole = torch.where(torch.isfinite(whole), whole, 0.0)
        grouped = (logits - whole).unflatten(0, (model.kv_heads, model.group))
        return grouped.logsumexp(dim=1) - math.log(model.group)


def mean_turn(inv_freq: Tensor, horizon: int) -> Tensor:
    """Mean of e^(i o ω) over o = 0 … horizon − 1, complex128 [F]: a geometric series."""
    half = inv_freq.double().cpu() / 2
    ratio = torch.where(half == 0, 1.0, torch.sin(horizon * half) / (horizon * torch.sin(half)))
    angle = (horizon - 1) * half
    return torch.polar(torch.ones_like(angle), angle) * ratio
