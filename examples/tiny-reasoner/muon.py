"""Muon in float32: torch's own works in bfloat16, which CPUs without such products emulate."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices [B, m, n] with all singular values near 1, by the quintic Newton-Schulz iteration of Jordan 2024."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal; scaled to the size of AdamW's steps (Moonlight, arXiv 2502.16982)."""

    def __init__(self, matrices: Iterable[Tensor], lr: float, decay: float = 0.1, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "decay": decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step for all matrices, those of one shape together."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                moments = []
                for parameter in parameters:
                    state = self.state[parameter]
                    moment = state.setdefault("momentum", torch.zeros_like(parameter))
                    moment.lerp_(parameter.grad, 1 - group["momentum"])
                    moments.append(parameter.grad.lerp(moment, group["momentum"]))
                updates = orthogonal(torch.stack(moments)) * (0.2 * max(shape) ** 0.5)
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["decay"]).sub_(group["lr"] * update)
