"""Streaming means of queries, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from triattn.calibrate.capture import pairs


class Means:
    """Sums over tokens of the query as a complex number, of its magnitude and of its second moments, by layer, query
    head and band."""

    def __init__(self, layers: int, heads: int, dim: int, pairing: str) -> None:
        self.dim, self.pairing = dim, pairing
        self._sums = torch.zeros(6, layers, heads, dim // 2, dtype=torch.float64)
        self._tokens = [0] * layers

    def add(self, layer: int, query: Tensor) -> None:
        """Take in queries [batch, heads, tokens, ≥ dim] of a layer, before rotation."""
        # Not every device has float64; sums of single windows are taken there in float32 otherwise.
        wide = torch.float32 if query.device.type == "mps" else torch.float64
        real, imag = (x.to(wide) for x in pairs(query.detach(), self.dim, self.pairing))
        kinds = (real, imag, torch.hypot(real, imag), real * real, imag * imag, real * imag)
        parts = [x.sum(dim=(0, 2)) for x in kinds]
        self._sums[:, layer] += torch.stack(parts).cpu().to(torch.float64)
        self._tokens[layer] += query.shape[0] * query.shape[2]

    @property
    def tokens(self) -> int:
        """Tokens taken in by every layer."""
        return min(self._tokens)

    def result(self) -> dict[str, Tensor]:
        """float32 [layers, heads, dim / 2] each: q_mean_real, q_mean_imag, q_abs_mean; and q_covariance [3, …]."""
        assert len(set(self._tokens)) == 1 and self.tokens > 0, self._tokens
        means = self._sums / self.tokens
        real, imag = means[:2]
        covariance = means[3:] - torch.stack([real * real, imag * imag, real * imag])
        # What rounding leaves of a variance of 0.
        covariance[:2].clamp_(min=0)
        names = ("q_mean_real", "q_mean_imag", "q_abs_mean")
        result = dict(zip(names, means[:3].to(torch.float32), strict=True))
        return {**result, "q_covariance": covariance.to(torch.float32)}
