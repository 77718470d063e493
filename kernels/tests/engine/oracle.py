"""The oracle: a dense forward pass in plain torch in which evicted keys are masked.

One incarnation of a request is the time from when it gets its KV blocks until it gives them back
(finish, abort, preemption). Within it, the keys and values of token p were computed from hidden
states that attended, in every layer, to exactly the keys resident when p was computed. So one dense
causal pass with the mask

    visible(layer, kv head, q, k)  =  k <= q  and no round with C <= q has evicted k

is exact, with C the number of tokens computed when the round ran, that is, the position of the next
token. It needs no knowledge of chunks, batches, blocks or slots.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .models import EXPERTS_PER_TOKEN, ModelSpec, config, load_weights


@dataclass(frozen=True)
class Round:
    """A round of one request: ``kept`` is int64 [layers, kv_heads, n_keep], logical positions."""

    computed: int
    evicted_total: int
    kept: np.ndarray

    @property
    def n_keep(self) -> int:
        """Resident tokens per layer and KV head after the round."""
        return self.kept.shape[-1]


class BadRound(AssertionError):
    """A recorded round that no correct engine could have run."""


def check_rounds(spec: ModelSpec, rounds: Sequence[Round]) -> None:
    """Every round keeps distinct tokens that were computed and not evicted before, and counts them right."""
    before: np.ndarray | None = None
    for index, this in enumerate(rounds):
        what = f"round {index} at C = {this.computed}"
        shape = (spec.layers, spec.kv_heads, this.computed - this.evicted_total)
        if this.kept.shape != shape:
            raise BadRound(f"{what}: kept {this.kept.shape}, counts say {shape}")
        resident = np.zeros((spec.layers, spec.kv_heads, this.computed), bool)
        if before is None:
            resident[:] = True
        else:
            if this.computed < before.shape[-1]:
                raise BadRound(f"{what}: computed before, {before.shape[-1]}, was more")
            resident[..., : before.shape[-1]] = before
            resident[..., before.shape[-1] :] = True
        if this.kept.min() < 0 or this.kept.max() >= this.computed:
            raise BadRound(f"{what}: kept positions {this.kept.min()}..{this.kept.max()}")
        now = np.zeros_like(resident)
        np.put_along_axis(now, this.kept, True, axis=-1)
        if (now.sum(-1) != this.n_keep).any():
            raise BadRound(f"{what}: a position is kept twice")
        if (now & ~resident).any():
            layer, head, position = np.argwhere(now & ~resident)[0]
            raise BadRound(f"{what}: layer {layer} head {head} keeps {position}, evicted earlier")
        if (resident.sum(-1) == this.n_keep).all():
            raise BadRound(f"{what}: evicted nothing")
        before = now


def last_visible(spec: ModelSpec, length: int, rounds: Sequence[Round]) -> torch.Tensor:
    """int64 [layers, kv_heads, length]: the last query position that sees each key."""
    until = torch.full((spec.layers, spec.kv_heads, length), length, dtype=torch.int64)
    for this in rounds:
        if this.computed >= length:
            break
        gone = torch.ones(spec.layers, spec.kv_heads, this.computed, dtype=torch.bool)
        gone.scatter_(-1, torch.from_numpy(np.ascontiguousarray(this.kept)), False)
        until[..., : this.computed] = torch.where(
            gone, until[..., : this.computed].clamp(max=this.computed - 1), until[..., : this.computed]
        )
    return until


@functools.cache
def rotary(spec: ModelSpec) -> tuple[torch.Tensor, float]:
    """(inv_freq float32 [head_dim / 2], factor on cos and sin)."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if spec.rotary["rope_type"] == "default":
        exponent = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
        return 1.0 / (spec.rotary["rope_theta"] ** exponent), 1.0
    hf = AutoConfig.for_model(spec.family, **{k: v for k, v in config(spec).items() if k != "model_type"})
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[spec.rotary["rope_type"]](hf, torch.device("cpu"))
    return inv_freq.float(), float(scaling)


@functools.cache
def _weights(spec: ModelSpec) -> dict[str, torch.Tensor]:
    return load_weights(spec)


class Oracle:
    """A model of ``models.py`` in plain torch, float32."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.weights = _weights(spec)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(variance + 1e-6) * self.weights[name]

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        # Angles in float32, like every engine: at position 4,000 float64 would differ by 1e-4.
        inv_freq, scaling = rotary(self.spec)
        angle = positions.float()[:, None] * inv_freq
        cos, sin = angle.cos() * scaling, angle.sin() * scaling
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def qkv(
        self, layer: int, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Post-rotary q [query_heads, T, D], k and v [kv_heads, T, D] of normed hidden states [T, hidden]."""
        spec, at = self.spec, f"model.layers.{layer}.self_attn."

        def heads(name: str, count: int) -> torch.Tensor:
            return (hidden @ self.weights[f"{at}{name}_proj.weight"].T).view(-1, count, spec.head_dim)

        q, k, v = heads("q", spec.query_heads), heads("k", spec.kv_heads), heads("v", spec.kv_heads)
        if spec.family != "llama":
            q, k = self._norm(q, at + "q_norm.weight"), self._norm(k, at + "k_norm.weight")
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        return self._rotate(q, positions), self._rotate(k, positions), v

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Attention of q [query_heads, Q, D] over k, v [kv_heads, K, D] under bool mask [kv_heads, Q, K]."""
        spec = self.spec
        grouped = q.reshape(spec.kv_heads, spec.group, *q.shape[1:])
        scores = torch.einsum("hgqd,hkd->hgqk", grouped, k) * spec.head_dim**-0.5
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
        out = torch.einsum("hgqk,hkd->hgqd", scores.softmax(-1), v)
        return out.reshape(spec.query_heads, -1, spec.head_dim)

    def finish_layer(self, layer: int, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Output projection, residuals and MLP: x [T, hidden], attended [query_heads, T, D]."""
        at, w = f"model.layers.{layer}.", self.weights
        x = x + attended.transpose(0, 1).reshape(x.shape[0], -1) @ w[at + "self_attn.o_proj.weight"].T
        h = self._norm(x, at + "post_attention_layernorm.weight")
        if not self.spec.experts:
            return x + self._mlp(h, f"{at}mlp.")
        chance, chosen = (h @ w[at + "mlp.gate.weight"].T).softmax(-1).topk(EXPERTS_PER_TOKEN)
        share = torch.zeros(len(h), self.spec.experts).scatter_(
            1, chosen, chance / chance.sum(-1, keepdim=True)
        )
        parts = [self._mlp(h, f"{at}mlp.experts.{i}.") for i in range(self.spec.experts)]
        return x + torch.einsum("te,eth->th", share, torch.stack(parts))

    def _mlp(self, h: torch.Tensor, at: str) -> torch.Tensor:
        gate = torch.nn.functional.silu(h @ self.weights[at + "gate_proj.weight"].T)
        return (gate * (h @ self.weights[at + "up_proj.weight"].T)) @ self.weights[at + "down_proj.weight"].T

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """Hidden states [T, hidden] before the first layer."""
        return self.weights["model.embed_tokens.weight"][torch.tensor(list(tokens))]

    def norm_in(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Hidden states as a layer's attention reads them."""
        return self._norm(x, f"model.layers.{layer}.input_layernorm.weight")

    def log_probs(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [T, vocab] from the last layer's hidden states [T, hidden]."""
        return (self._norm(x, "model.norm.weight") @ self.weights["lm_head.weight"].T).log_softmax(-1)

    @torch.no_grad()
    def forward(
        self, tokens: Sequence[int], rounds: Sequence[Round] = ()
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """One incarnation with these rounds.

        Returns:
            Log-probs after each token float32 [T, vocab]; every key (post-rotary) and value that was ever cached,
            float32 [layers, kv_heads, T, head_dim]; every query (post-rotary), [layers, query_heads, T, head_dim].
        """
        length = len(tokens)
        positions = torch.arange(length)
        until = last_visible(self.spec, length, rounds)
        causal = positions[None, :] <= positions[:, None]
        x = self.embed(tokens)
        queries, keys, values = [], [], []
        for layer in range(self.spec.layers):
            q, k, v = self.qkv(layer, self.norm_in(layer, x), positions)
            mask = causal & (positions[:, None] <= until[layer][:, None, :])
            x = self.finish_layer(layer, x, self.attend(q, k, v, mask))
            queries.append(q)
            keys.append(k)
            values.append(v)
        return self.log_probs(x), torch.stack(keys), torch.stack(values), torch.stack(queries)

    def __call__(self, tokens: Sequence[int], rounds: Sequence[Round] = ()) -> torch.Tensor:
        """Log-probs float32 [T, vocab] after each token of one incarnation with these rounds."""
        return self.forward(tokens, rounds)[0]
