"""A small network that calibration fits: how much later queries will miss a token, from what the cache holds of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from triattn.policies.context import Round
from triattn.policies.superseded import Superseded, rotation_undone

NEAREST = 2.0**-10
"""Distance, 1 less the cosine, below which two keys count as equally near: float16 tells no more apart."""
REPEATS = Superseded("key")
"""The term whose cosine is one of the inputs: a policy with a probe remembers it."""


def beside_keys(age: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a probe looks at beside keys, from ages and cosines: log age, cosine, log distance."""
    return age.clamp(min=1).float().log(), like, (1 - like).clamp(min=NEAREST).log()


def network(probe: Tensor, keys: Tensor, age: Tensor, like: Tensor) -> Tensor:
    """Scores float32 [heads, N] of keys [heads, N, D], rotation undone, of age and cosines [heads, N].

    `probe` is float32 [heads, D + 6, units]: see `Probe`.
    """
    dim = keys.shape[-1]
    in_keys, (by_age, by_like, by_near, bias, out, longest) = probe[:, :dim], probe[:, dim:].unbind(1)
    age, like, near = beside_keys(age, like)
    age = age.minimum(longest[:, :1])
    hidden = torch.baddbmm(bias[:, None], keys, in_keys)
    for column, weights in ((age, by_age), (like, by_like), (near, by_near)):
        hidden = hidden + column[..., None] * weights[:, None]
    return (torch.nn.functional.silu(hidden) * out[:, None]).sum(-1)


@dataclass(frozen=True)
class Probe:
    """S(i) = Σ_u o_u silu(w_u · k_i + a_u log t_i + s_u c_i + n_u log(1 − c_i) + b_u), learned per layer and KV head.

    k is the key with its rotation undone; t how many positions ago it came, at most as long as calibration has seen;
    c its largest cosine to a later key (`Superseded`). All are a token's own: what else is resident changes nothing.
    As KVzap (arXiv 2601.07891) learns scores from hidden states, but from what the cache holds.
    """

    per_query_head = False
    needs_statistics = True
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]. Needs `learned_probe`, float32 [layers, kv_heads, head_dim + 6, units]: by hidden unit
        the weights of the key's dimensions, of the age, of c and of log(1 − c), the bias, the weight of the unit's
        output, and the longest log t."""
        position = ctx.positions[layer]
        keys = rotation_undone(ctx.model, ctx.keys(layer), position)
        probe = ctx.statistics.learned_probe[layer].to(keys.device)  # type: ignore[union-attr]
        return network(probe, keys, ctx.computed - position, -ctx.score(REPEATS, layer))
