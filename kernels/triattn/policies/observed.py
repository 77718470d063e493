"""Attention that recent queries pay (SnapKV, arXiv 2404.14469; R-KV, arXiv 2505.24133)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triattn.policies.context import Round


def products(ctx: Round, queries: Tensor, keys: Tensor) -> Tensor:
    """Scaled q·k, float32 [kv_heads, group, n, N], of `queries` [query_heads, n, D] and `keys` [kv_heads, N, D]."""
    return torch.einsum("hgqd,hnd->hgqn", queries.unflatten(0, (ctx.model.kv_heads, ctx.model.group)), keys)


def attention(logits: Tensor, seen: Tensor) -> Tensor:
    """Softmax over the last dimension of logits that are finite and `seen`; a query that sees nothing pays none."""
    logits = torch.where(seen & torch.isfinite(logits), logits, -torch.inf)
    return torch.nan_to_num(logits.softmax(dim=-1), nan=0.0)


@dataclass(frozen=True)
class Observed:
    """S(k) = max of A(k') over k' at most `reach` positions from k, per KV head; A: attention of the last queries.

    Those are the queries of the last n positions, n = `window`, or as many as the request has in this cache. With
    `group` "mean", A is the mean over them, and over the query heads of a KV head, of the softmax of q·k times the
    scale of attention, over all resident tokens that a query may see (SnapKV). With "max" it is the mean over them of
    one softmax of the heads' largest q·k, over the tokens before those n (R-KV).

    Only tokens before those n are pooled; the n themselves, which few queries have seen yet, score 1, the most that
    attention can be. A key whose q·k is not finite takes no part in the softmax; it scores as not a number where it
    holds one itself.
    """

    window: int
    reach: int
    group: Literal["mean", "max"]
    per_query_head = False
    names_heads = True
    needs_statistics = False
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]."""
        assert ctx.queries is not None, "engines that keep no queries refuse this term"
        position = ctx.positions[layer]
        queries = ctx.queries(layer)[:, -self.window :]
        count = queries.shape[1]
        assert count, "a round follows a step of its request"
        keys = ctx.keys(layer)
        logits = products(ctx, queries, keys)
        first = ctx.computed - count
        earlier = position < first
        if self.group == "max":
            logits = logits.amax(dim=1, keepdim=True)
            seen = earlier[:, None, None]
        else:
            when = torch.arange(first, ctx.computed, device=position.device)
            seen = position[:, None, None] <= when[:, None]
        paid = attention(logits, seen).mean(dim=(1, 2))
        pooled = self._pooled(torch.where(earlier, paid, 0.0), position)
        score = torch.where(earlier, pooled, 1.0)
        return torch.where(keys.isnan().any(dim=-1), torch.nan, score)

    def _pooled(self, paid: Tensor, position: Tensor) -> Tensor:
        """The largest of `paid` [kv_heads, N] at most `reach` positions from each entry."""
        # In order of position; neighbours that were evicted leave a gap.
        order = position.argsort(dim=-1)
        where, ordered = position.gather(-1, order), paid.gather(-1, order)
        best = ordered.clone()
        for step in range(1, min(self.reach, ordered.shape[-1] - 1) + 1):
            near = where[:, step:] - where[:, :-step] <= self.reach
            left, right = ordered[:, :-step], ordered[:, step:]
            best[:, step:] = torch.where(near, torch.maximum(best[:, step:], left), best[:, step:])
            best[:, :-step] = torch.where(near, torch.maximum(best[:, :-step], right), best[:, :-step])
        return torch.empty_like(paid).scatter_(-1, order, best)
