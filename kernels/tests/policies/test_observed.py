"""The terms `observed` and `redundancy` against SnapKV's and R-KV's formulas, in float64, entry by entry."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policies.builders import policy, request, shape
from triattn.policies import Round
from triattn.policies.observed import Observed
from triattn.policies.redundancy import Redundancy


def context(seed: int, n: int, count: int, group: int, **fields: int) -> Round:
    """A round over n entries at random positions with `count` queries; its last n // 2 entries are the newest."""
    generator = torch.Generator().manual_seed(seed)
    model = shape(kv_heads=2, group=group)
    queries = 2 * torch.randn(model.layers, model.query_heads, count, model.head_dim, generator=generator)
    ctx = request(model, n, generator, queries=queries, **fields)
    # In a cache rows are in no order once entries have moved.
    order = torch.stack(
        [torch.randperm(n, generator=generator) for _ in range(model.layers * model.kv_heads)]
    )
    order = order.view(model.layers, model.kv_heads, n)
    return dataclasses.replace(ctx, positions=ctx.positions.gather(-1, order))


def derived(ctx: Round, layer: int, window: int, reach: int, group: str) -> np.ndarray:
    """The score of `observed`, float64 [kv_heads, N], one probability after another."""
    keys, position = ctx.keys(layer).double().numpy(), ctx.positions[layer].numpy()
    queries = ctx.queries(layer).double().numpy()[:, -window:]
    count, heads, members = queries.shape[1], ctx.model.kv_heads, ctx.model.group
    first = ctx.computed - count
    score = np.ones(position.shape)
    for head in range(heads):
        attention = np.zeros(len(position[head]))
        own = [head * members + m for m in range(members)]
        softmaxes = [own] if group == "max" else [[query] for query in own]
        for together in softmaxes:
            for number in range(count):
                edge = first if group == "max" else first + number + 1
                seen = [i for i, p in enumerate(position[head]) if p < edge]
                power = {i: math.exp(max(queries[q, number] @ keys[head, i] for q in together)) for i in seen}
                whole = sum(power.values())
                for i in seen:
                    attention[i] += power[i] / whole / count / len(softmaxes)
        for i, p in enumerate(position[head]):
            if p < first:
                near = [
                    attention[j] for j, o in enumerate(position[head]) if o < first and abs(o - p) <= reach
                ]
                score[head, i] = max(near)
    return score


@given(
    seed=st.integers(0, 2**20),
    n=st.integers(1, 24),
    gone=st.integers(0, 12),
    count=st.integers(1, 9),
    window=st.integers(1, 9),
    reach=st.integers(0, 4),
    heads=st.sampled_from([1, 3]),
    group=st.sampled_from(["mean", "max"]),
)
@settings(max_examples=60, deadline=None)
def test_attention_is_derived(
    seed: int, n: int, gone: int, count: int, window: int, reach: int, heads: int, group: str
) -> None:
    ctx = context(seed, n, min(count, n + gone), heads, computed=n + gone)
    for layer in range(ctx.model.layers):
        got = Observed(window, reach, group).score(ctx, layer)
        np.testing.assert_allclose(got, derived(ctx, layer, window, reach, group), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("group", ["mean", "max"])
def test_published_forms_where_nothing_is_evicted(group: str) -> None:
    """As in the papers: matrices in order of position, max_pool1d of kernel 7 over what comes before the window."""
    n, window = 40, 8
    generator = torch.Generator().manual_seed(3)
    model = shape(kv_heads=2, group=4)
    queries = torch.randn(model.layers, model.query_heads, window, model.head_dim, generator=generator)
    ctx = request(model, n, generator, queries=queries)
    logits = torch.einsum("hgqd,hnd->hgqn", queries[0].view(2, 4, window, -1), ctx.keys(0))
    if group == "max":
        attention = logits.amax(dim=1)[..., :-window].softmax(-1).mean(-2)
        want = torch.nn.functional.max_pool1d(attention, 7, stride=1, padding=3)
    else:
        mask = torch.full((window, n), -torch.inf).triu(n - window + 1)
        attention = (logits + mask).softmax(-1)[..., :-window].mean(-2)
        # kvpress's order, where a KV head's entry goes as a whole: the mean over the group first.
        want = torch.nn.functional.max_pool1d(attention.mean(1), 7, stride=1, padding=3)
    got = Observed(window, 3, group).score(ctx, 0)
    torch.testing.assert_close(got[:, :-window], want)
    assert (got[:, -window:] == 1).all()


def test_a_query_out_of_place_shows() -> None:
    """The derivation bites: with the queries turned by one place the scores are others."""
    ctx = context(5, 20, 6, 2)
    turned = dataclasses.replace(ctx, queries=lambda layer: ctx.queries(layer).roll(1, dims=1))
    got = Observed(6, 1, "mean").score(turned, 0)
    assert np.abs(got.numpy() - derived(ctx, 0, 6, 1, "mean")).max() > 1e-3


def test_keys_that_are_not_finite() -> None:
    ctx = context(6, 16, 4, 2)
    keys = ctx.keys(0).clone()
    first = int(ctx.positions[0, 0].argsort()[3])
    second = int(ctx.positions[0, 0].argsort()[5])
    keys[0, first], keys[0, second] = torch.nan, torch.inf
    broken = dataclasses.replace(ctx, keys=lambda layer: keys)
    for group in ("mean", "max"):
        score = Observed(4, 0, group).score(broken, 0)
        assert score[0, first].isnan()
        assert score[0, second] == 0
        assert torch.isfinite(score).sum() == score.numel() - 1
    assert Redundancy().score(broken, 0).isnan().sum() == 2


def redundant(ctx: Round, layer: int) -> np.ndarray:
    """The score of `redundancy`, float64 [kv_heads, N], one pair after another."""
    keys, position = ctx.keys(layer).double().numpy(), ctx.positions[layer].numpy()
    score = np.empty(position.shape)
    for head, (rows, where) in enumerate(zip(keys, position, strict=True)):
        unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        like = unit @ unit.T
        np.fill_diagonal(like, 0)
        for i in range(len(rows)):
            alike = [j for j in range(len(rows)) if like[i, j] > 0.5]
            if alike:
                like[i, max(alike, key=lambda j: where[j])] = 0
        power = np.exp(like.mean(axis=0))
        score[head] = -power / power.sum()
    return score


@given(seed=st.integers(0, 2**20), n=st.integers(1, 40), spread=st.sampled_from([0.3, 1.0]))
@settings(max_examples=40, deadline=None)
def test_redundancy_is_derived(seed: int, n: int, spread: float) -> None:
    ctx = context(seed, n, 1, 1, computed=n + 5)
    # With a common part many keys are alike.
    common = torch.randn(ctx.model.head_dim, generator=torch.Generator().manual_seed(seed))
    near = dataclasses.replace(ctx, keys=lambda layer: spread * ctx.keys(layer) + common)
    for layer in range(ctx.model.layers):
        got = Redundancy().score(near, layer)
        np.testing.assert_allclose(got, redundant(near, layer), rtol=1e-5)


def test_the_latest_of_what_repeats_is_spared() -> None:
    """Of three equal keys the last scores highest, then the one that is the latest which that resembles."""
    ctx = context(7, 12, 1, 1)
    order = ctx.positions[0, 0].argsort()
    keys = ctx.keys(0).clone()
    keys[0, order[[2, 5, 9]]] = 5 * torch.ones(ctx.model.head_dim)
    score = Redundancy().score(dataclasses.replace(ctx, keys=lambda layer: keys), 0)[0]
    assert score[order[9]] > score[order[5]] + 1e-4
    assert score[order[5]] > score[order[2]] + 1e-4


def test_a_policy_says_how_many_queries_it_observes() -> None:
    several = ({"kind": "observed", "window": 8}, {"kind": "observed", "window": 16}, {"kind": "keydiff"})
    assert policy(*several).observes == 16
    assert policy({"kind": "keydiff"}).observes == 0
    reserve = {"share": 0.5, "terms": [{"kind": "observed"}]}
    assert policy({"kind": "keydiff"}, normalize="each", reserve=reserve).observes == 32
