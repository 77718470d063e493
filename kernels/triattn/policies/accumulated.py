"""Attention that all queries have paid, added up (H2O, arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from triattn.policies.context import Round
from triattn.policies.observed import attention, products


@dataclass(frozen=True)
class Accumulated:
    """S(k) = Σ over queries q of A_q(k), per KV head; A: mean over its query heads of their softmaxes.

    A softmax is that of q·k times the scale of attention over all resident tokens that the query may see: what q paid,
    since nothing is evicted between rounds. A round adds the queries since the round before, and what they find is
    remembered (`Memory`); at the first round, or of more than `window` queries, the last `window`, or as many as the
    request has in this cache. A key whose q·k is not finite takes no part in the softmax; it scores as not a number
    where it holds one itself.
    """

    window: int
    per_query_head = False
    names_heads = True
    needs_statistics = False
    reads_keys = True

    def score(self, ctx: Round, layer: int) -> Tensor:
        """float32 [kv_heads, N]."""
        assert ctx.queries is not None, "engines that keep no queries refuse this term"
        position, keys = ctx.positions[layer], ctx.keys(layer)
        entries = position.shape[-1]
        known = ctx.memory.known if ctx.memory else 0
        queries = ctx.queries(layer)
        count = min(queries.shape[1], self.window, entries - known)
        queries = queries[:, queries.shape[1] - count :]
        when = torch.arange(ctx.computed - count, ctx.computed, device=position.device)
        seen = position[:, None, None] <= when[:, None]
        paid = attention(products(ctx, queries, keys), seen).mean(dim=1).sum(dim=1)
        if ctx.memory:
            if known:
                paid[:, :known] += ctx.memory.stored(self, layer)[:, :known]
            ctx.memory.found[self, layer] = paid
        return torch.where(keys.isnan().any(dim=-1), torch.nan, paid)
