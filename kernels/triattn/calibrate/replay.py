"""A model on a text with a KV cache that a policy compresses, teacher-forced, in plain torch.

Tokens run in chunks; after each, a round of the policy leaves as many resident tokens as the budget. Attention reads
what each KV head still has, so what a policy throws away is gone, as in an engine. Nothing is generated: the text is
given, and what is measured is how well the model still foresees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from triattn.calibrate.errors import CalibrationError
from triattn.config import MOST_QUERIES
from triattn.policies import ModelShape, Policy, QueryStatistics, Round
from triattn.policies.context import Memory

NAME = "triattn_replay"


class Cache:
    """Resident entries: keys (rotated) and values [kv_heads, R, D], positions int64 [kv_heads, R], by layer.

    Of queries, times the scale of attention, as many of the last ones as some policy may observe.
    """

    def __init__(self, layers: int) -> None:
        self.queries: list[Tensor | None] = [None] * layers
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.positions: list[Tensor | None] = [None] * layers
        self.computed = 0
        self.known = 0
        self.memory: dict[tuple[Any, int], Tensor] = {}
        """What terms remember, by (term, layer): float32 [kv_heads, `known`]."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Append entries [kv_heads, n, D] at the next positions."""
        where = torch.arange(self.computed, self.computed + keys.shape[1], device=keys.device)
        where = where.expand(keys.shape[0], -1)
        for held, new in ((self.keys, keys), (self.values, values), (self.positions, where)):
            held[layer] = new if held[layer] is None else torch.cat([held[layer], new], dim=1)

    def observe(self, layer: int, queries: Tensor) -> None:
        """Keep the last of these queries [query_heads, n, D] and of those before them."""
        held = self.queries[layer]
        queries = queries[:, -MOST_QUERIES:].float()
        joined = queries if held is None else torch.cat([held, queries], dim=1)
        self.queries[layer] = joined[:, -MOST_QUERIES:]

    def round(
        self, policy: Policy, shape: ModelShape, statistics: QueryStatistics | None, **fields: Any
    ) -> None:
        """Keep `keep` entries for each layer and head; `fields` are a Round's prompt_len and pin_prompt, and keep."""
        keep = fields.pop("keep")

        def stored(term: Any, layer: int) -> Tensor:
            return self.memory[term, layer]

        memory = Memory(self.known, stored)
        ctx = Round(
            model=shape,
            keys=lambda layer: self.keys[layer].float(),
            values=lambda layer: self.values[layer].float(),
            positions=torch.stack(self.positions),
            computed=self.computed,
            statistics=statistics,
            memory=memory,
            queries=lambda layer: self.queries[layer],
            **fields,
        )
        kept = policy.select(ctx, keep)
        self.known, self.memory = keep, {}
        for layer in range(shape.layers):
            index = kept[layer].nonzero()[:, 1].view(shape.kv_heads, -1)
            wide = index[..., None].expand(-1, -1, shape.head_dim)
            self.keys[layer] = self.keys[layer].gather(1, wide)
            self.values[layer] = self.values[layer].gather(1, wide)
            self.positions[layer] = self.positions[layer].gather(1, index)
            for (term, where), values in memory.found.items():
                if where == layer:
                    self.memory[term, layer] = values.gather(1, index)


def attend(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention of the last tokens: query [heads, n, D] over keys and values [kv_heads, R + n, D], causal among the n.

    Returns the output [heads, n, D] and the probabilities [heads, n, R + n].
    """
    heads, new, _ = query.shape
    group = heads // keys.shape[0]
    scores = torch.einsum("hqd,hkd->hqk", query, keys.repeat_interleave(group, 0)) * scaling
    blocked = torch.ones(new, new, dtype=torch.bool, device=query.device).triu(1)
    scores[:, :, keys.shape[1] - new :].masked_fill_(blocked, -torch.inf)
    weights = scores.float().softmax(-1)
    return torch.einsum("hqk,hkd->hqd", weights.to(values.dtype), values.repeat_interleave(group, 0)), weights


def placed(model: Any, tokens: Sequence[int], start: int = 0) -> tuple[Tensor, Tensor]:
    """Ids of tokens and their positions from `start` on, each int64 [1, n], on the model's device."""
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([list(tokens)], device=device)
    return ids, torch.arange(start, start + ids.shape[1], device=device)[None]


@contextmanager
def attention_replaced(model: Any, function: Any) -> Iterator[None]:
    """While active, the model's attention is `function(layer, query, keys, values, scaling)` on one sequence.

    Its arguments are [heads, n, D], rotated; it returns the output [heads, n, D]. Raises CalibrationError in the
    forward pass of a model whose attention is not the plain softmax.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        for name in ("s_aux", "sliding_window", "softcap"):
            if kwargs.get(name) is not None:
                raise CalibrationError("attention", name, "only plain softmax attention can be replayed")
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        out = function(module.layer_idx, query[0], key[0], value[0], scaling)
        return out.transpose(0, 1)[None].to(query.dtype), None

    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


@torch.inference_mode()
def replay(
    model: Any,
    tokens: Sequence[int],
    shape: ModelShape,
    policy: Policy | None,
    statistics: QueryStatistics | None = None,
    *,
    budget: int = 0,
    interval: int = 64,
    prompt_len: int = 0,
) -> Tensor:
    """Log-probabilities float32 [T, vocabulary] after each of `tokens`; without a policy nothing is evicted.

    The prompt runs whole and, where it fits, is pinned.
    """
    cache = Cache(shape.layers)

    def step(layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        cache.extend(layer, keys, values)
        cache.observe(layer, query * scaling)
        return attend(query, cache.keys[layer], cache.values[layer], scaling)[0]

    results = []
    with attention_replaced(model, step):
        while cache.computed < len(tokens):
            count = prompt_len if cache.computed == 0 and prompt_len else interval
            some = tokens[cache.computed : cache.computed + count]
            piece, where = placed(model, some, cache.computed)
            logits = model(input_ids=piece, position_ids=where, use_cache=False).logits[0]
            results.append(logits.float().log_softmax(-1))
            cache.computed += piece.shape[1]
            if policy is not None and cache.positions[0].shape[1] > budget:
                cache.round(
                    policy, shape, statistics, keep=budget, prompt_len=prompt_len, pin_prompt=prompt_len > 0
                )
    return torch.cat(results)
