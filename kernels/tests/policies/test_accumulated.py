"""The term `accumulated` against H2O's running sums, in float64, query by query as tokens are generated."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policies.builders import document, policy, shape
from triattn import config
from triattn.config import ConfigError, preset
from triattn.policies import ModelShape, Policy, Round
from triattn.policies.accumulated import Accumulated
from triattn.policies.context import Memory

LENGTH = 60


def tokens(model: ModelShape, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [layers, kv_heads, LENGTH, D] and scaled queries [layers, query_heads, LENGTH, D] of all positions."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(model.layers, model.kv_heads, LENGTH, model.head_dim, generator=generator)
    queries = torch.randn(model.layers, model.query_heads, LENGTH, model.head_dim, generator=generator)
    return keys, queries


def paid(keys: np.ndarray, query: np.ndarray, resident: list[int]) -> np.ndarray:
    """Attention of one query head's query on resident positions, all that it sees."""
    power = np.exp(keys[resident] @ query)
    return power / power.sum()


class Served:
    """One request of one layer and KV head as H2O has it: a sum for every resident token, made as tokens come."""

    def __init__(self, keys: torch.Tensor, queries: torch.Tensor) -> None:
        self.keys, self.queries = keys.double().numpy(), queries.double().numpy()
        self.sums: dict[int, float] = {}

    def step(self, position: int, *, counts: bool = True) -> None:
        self.sums[position] = 0.0
        resident = list(self.sums)
        for query in self.queries[:, position] if counts else ():
            for token, part in zip(resident, paid(self.keys, query, resident), strict=True):
                self.sums[token] += part / len(self.queries)

    def evict(self, kept: list[int]) -> None:
        self.sums = {position: self.sums[position] for position in kept}


@given(
    seed=st.integers(0, 2**20),
    group=st.sampled_from([1, 3]),
    first=st.integers(4, 30),
    every=st.integers(1, 9),
    window=st.sampled_from([9, 60]),
    queries_there=st.sampled_from([5, 60]),
)
@settings(max_examples=40, deadline=None)
def test_sums_are_those_of_every_query(
    seed: int, group: int, first: int, every: int, window: int, queries_there: int
) -> None:
    """Rounds that evict at random; before the first, and of a prompt that was cached, only some queries count."""
    model = shape(layers=2, kv_heads=2, group=group)
    keys, queries = tokens(model, seed)
    term, draw = Accumulated(window), np.random.default_rng(seed)
    rows = [(layer, head) for layer in range(model.layers) for head in range(model.kv_heads)]
    served = {
        (layer, head): Served(keys[layer, head], queries[layer, head * group : (head + 1) * group])
        for layer, head in rows
    }
    resident = torch.zeros(model.layers, model.kv_heads, 0, dtype=torch.long)
    remembered: dict[Any, torch.Tensor] = {}
    computed = 0
    for end in range(first, LENGTH + 1, every):
        there = min(window, queries_there) if computed == 0 else every
        for position in range(computed, end):
            for one in served.values():
                one.step(position, counts=position >= end - there)
        fresh = torch.arange(computed, end).expand(model.layers, model.kv_heads, -1)
        positions = torch.cat([resident, fresh], dim=-1)
        memory = Memory(resident.shape[-1], lambda term, layer, r=remembered: r[layer])
        # From the first computed position on all queries are there.
        since = max(first - min(first, queries_there), 0)
        ctx = Round(
            model=model,
            keys=lambda layer, p=positions: torch.stack(
                [k[i] for k, i in zip(keys[layer], p[layer], strict=True)]
            ),
            values=lambda layer: keys[layer],
            positions=positions,
            computed=end,
            prompt_len=0,
            pin_prompt=False,
            memory=memory,
            queries=lambda layer, a=since, b=end: queries[layer, :, a:b],
        )
        scores = torch.stack([term.score(ctx, layer) for layer in range(model.layers)])
        for (layer, head), one in served.items():
            want = [one.sums[int(p)] for p in positions[layer, head]]
            np.testing.assert_allclose(scores[layer, head], want, rtol=2e-5, atol=1e-6)
        keep = max(positions.shape[-1] - draw.integers(1, every + 1), 1)
        order = torch.from_numpy(np.stack([draw.permutation(positions.shape[-1])[:keep] for _ in rows])).view(
            model.layers, model.kv_heads, keep
        )
        resident = positions.gather(-1, order)
        remembered = {
            layer: memory.found[term, layer].gather(-1, order[layer]) for layer in range(model.layers)
        }
        for layer, head in rows:
            served[layer, head].evict(resident[layer, head].tolist())
        computed = end


def one_round(**fields: Any) -> Round:
    model = shape(layers=1, kv_heads=1, group=2)
    keys, queries = tokens(model, 3)
    return Round(
        model=model,
        keys=lambda layer: keys[layer, :, :20],
        values=lambda layer: keys[layer, :, :20],
        positions=torch.arange(20).view(1, 1, 20),
        computed=20,
        prompt_len=0,
        pin_prompt=False,
        queries=lambda layer: queries[layer, :, :20],
        **fields,
    )


def test_every_query_pays_one_in_all() -> None:
    """So a query that was added twice, or not at all, shows in the sum of a head's scores."""
    assert Accumulated(64).score(one_round(), 0).sum() == pytest.approx(20)
    assert Accumulated(7).score(one_round(), 0).sum() == pytest.approx(7)
    memory = Memory(15, lambda term, layer: torch.ones(1, 20))
    assert Accumulated(64).score(one_round(memory=memory), 0).sum() == pytest.approx(15 + 5)


def test_keys_that_are_not_finite() -> None:
    ctx = one_round(memory=Memory(0, lambda term, layer: torch.empty(0)))
    keys = ctx.keys(0).clone()
    keys[0, 3], keys[0, 5] = torch.nan, torch.inf
    score = Accumulated(64).score(dataclasses.replace(ctx, keys=lambda layer: keys), 0)
    assert score[0, 3].isnan()
    assert torch.isfinite(score).sum() == 19
    # What is remembered stays a number: the entry may be evicted later, others may not suffer.
    assert torch.isfinite(ctx.memory.found[Accumulated(64), 0]).all()


def test_the_preset_keeps_half_by_recency_and_half_by_attention() -> None:
    compiled = dataclasses.replace(Policy.of(preset("h2o")), sinks=0)
    ctx = one_round()
    kept = compiled.select(ctx, 8)[0, 0]
    assert kept[16:].all()
    paid = Accumulated(128).score(ctx, 0)[0, :16]
    assert set(kept[:16].nonzero().flatten().tolist()) == set(paid.topk(4).indices.tolist())
    assert compiled.observes == 128
    assert compiled.observing == "accumulated"
    assert compiled.remembered == (Accumulated(128),)
    assert policy({"kind": "keydiff"}).observing == ""


def test_an_interval_longer_than_the_window_is_refused() -> None:
    config.check_policy(document({"kind": "accumulated", "window": 16}, interval=16))
    with pytest.raises(
        ConfigError, match=r"policy.interval = 17: must not exceed .* accumulated, 16: queries"
    ):
        config.check_policy(document({"kind": "accumulated", "window": 16}, interval=17))
