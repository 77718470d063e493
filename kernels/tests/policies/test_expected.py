"""The term `expected` against Expected Attention's formulas (arXiv 2510.00636) with whole matrices, in float64.

Rotations are matrices of all d dimensions, averaged position by position; no code is shared.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policies.builders import policy, request, shape, statistics
from triattn.policies import PolicyError, Round
from triattn.policies.expected import Expected, mean_turn
from triattn.rotary import frequencies

ROTARY = {
    "default": {"type": "default", "theta": 10000, "dim": 16},
    "llama3": {
        "type": "llama3",
        "theta": 500000,
        "dim": 16,
        "factor": 8,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "type": "yarn",
        "theta": 150000,
        "dim": 16,
        "factor": 32,
        "beta_fast": 32,
        "beta_slow": 1,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
}


def placed(ctx: Round, positions: Iterable[int]) -> Round:
    """The same entries at these positions, in every layer and head."""
    where = torch.tensor(list(positions))
    return dataclasses.replace(ctx, positions=where.expand(ctx.positions.shape))


def derived(ctx, layer: int, horizon: int) -> np.ndarray:
    """log of the mean over a group's heads of softmax(k·R̄μ/√d + kᵀ R̄ Σ R̄ᵀ k / 2d), float64 [kv_heads, N]."""
    model, stats = ctx.model, ctx.statistics
    d, bands = model.head_dim, model.rotary_dim // 2
    first = np.arange(bands) if model.pairing == "half" else 2 * np.arange(bands)
    second = first + (bands if model.pairing == "half" else 1)
    omega = model.inv_freq.double().numpy()
    rotation = np.zeros((d, d))
    for position in range(ctx.computed, ctx.computed + horizon):
        angle = omega * position
        one = np.zeros((d, d))
        one[first, first] = one[second, second] = np.cos(angle)
        one[first, second], one[second, first] = -np.sin(angle), np.sin(angle)
        rotation += one * model.attention_scaling / horizon
    out = []
    position = ctx.positions[layer].numpy()
    for kv_head in range(model.kv_heads):
        keys = ctx.keys(layer)[kv_head].double().numpy()
        total = np.zeros(keys.shape[0])
        for head in range(kv_head * model.group, (kv_head + 1) * model.group):
            mean, sigma = np.zeros(d), np.zeros((d, d))
            mean[first], mean[second] = stats.q_mean_real[layer, head], stats.q_mean_imag[layer, head]
            real, imag, both = stats.q_covariance[:, layer, head].double().numpy()
            sigma[first, first], sigma[second, second] = real, imag
            sigma[first, second] = sigma[second, first] = both
            logit = keys @ (rotation @ mean) / math.sqrt(d)
            logit += np.einsum("ni,ij,nj->n", keys, rotation @ sigma @ rotation.T, keys) / (2 * d)
            total += np.exp(logit) / np.exp(logit[position[kv_head] >= 4]).sum()
        out.append(np.log(total / model.group))
    return np.stack(out)


@pytest.mark.parametrize(("name", "pairing"), itertools.product(ROTARY, ("half", "interleaved")))
def test_it_is_the_papers_score(name: str, pairing: str) -> None:
    inverse, scaling = frequencies(ROTARY[name])
    gen = torch.Generator().manual_seed(1)
    # The last dimensions of a head are not rotated.
    model = shape(layers=2, kv_heads=2, group=3, head_dim=20, rotary_dim=16, pairing=pairing)
    model = dataclasses.replace(model, inv_freq=inverse, attention_scaling=scaling)
    ctx = request(model, 11, gen, computed=70_000, statistics=statistics(model, gen))
    # One of the first positions, which the softmax leaves out.
    ctx = placed(ctx, [2, *range(60_000, 60_010)])
    for layer in range(2):
        found = Expected(512).score(ctx, layer)
        np.testing.assert_allclose(found.double().numpy(), derived(ctx, layer, 512), rtol=2e-4, atol=2e-4)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    group=st.integers(1, 4),
    bands=st.integers(1, 8),
    horizon=st.integers(1, 40),
    n=st.integers(1, 12),
    pairing=st.sampled_from(["half", "interleaved"]),
)
def test_any_shape(seed: int, group: int, bands: int, horizon: int, n: int, pairing: str) -> None:
    gen = torch.Generator().manual_seed(seed)
    model = shape(layers=1, kv_heads=2, group=group, head_dim=2 * bands + seed % 3, rotary_dim=2 * bands)
    model = dataclasses.replace(model, pairing=pairing, attention_scaling=1.2)
    ctx = request(model, n, gen, computed=n + 10, statistics=statistics(model, gen))
    where = torch.randperm(n + 9, generator=gen)[: n - 1].tolist()
    ctx = placed(ctx, [*where, n + 9])
    found = Expected(horizon).score(ctx, 0)
    np.testing.assert_allclose(found.double().numpy(), derived(ctx, 0, horizon), rtol=1e-3, atol=1e-3)


def test_the_mean_turn_is_a_mean() -> None:
    omega = torch.tensor([1.0, 0.3, 1e-3, 1e-9, 0.0])
    for horizon in (1, 2, 512, 65536):
        angle = torch.arange(horizon, dtype=torch.float64)[:, None] * omega.double()
        wanted = torch.polar(torch.ones_like(angle), angle).mean(0)
        torch.testing.assert_close(mean_turn(omega, horizon), wanted, rtol=1e-9, atol=1e-9)


def test_times_the_values_length_is_a_sum_of_logarithms() -> None:
    gen = torch.Generator().manual_seed(3)
    model = shape(layers=1, kv_heads=2, group=2, head_dim=8)
    ctx = request(model, 9, gen, computed=40, statistics=statistics(model, gen))
    ctx = placed(ctx, range(20, 29))
    compiled = policy(
        {"kind": "expected"},
        {"kind": "vnorm", "log": True},
        normalize="none",
        selection="per_layer_per_head",
        pin={"prompt": False, "sinks": 0, "window": 0},
    )
    wanted = np.exp(derived(ctx, 0, 512)) * ctx.values(0).norm(dim=-1).numpy()
    np.testing.assert_allclose(compiled.scores(ctx)[0].exp().numpy(), wanted, rtol=1e-3)


def test_what_is_not_a_number_spoils_only_itself() -> None:
    gen = torch.Generator().manual_seed(4)
    model = shape(layers=1, kv_heads=1, group=2, head_dim=8)
    ctx = request(model, 6, gen, computed=30, statistics=statistics(model, gen))
    keys = ctx.keys(0).clone()
    keys[0, 2] = math.nan
    score = Expected(512).score(dataclasses.replace(ctx, keys=lambda _: keys), 0)[0]
    assert score.isnan().tolist() == [False, False, True, False, False, False]


def test_statistics_without_covariances_are_refused_or_done_without() -> None:
    gen = torch.Generator().manual_seed(5)
    model = shape()
    old = statistics(model, gen)
    del old.q_covariance
    with pytest.raises(PolicyError, match="triattn calibrate") as caught:
        policy({"kind": "expected"}).validate(model, tp_size=1, pp_size=1, statistics=old)
    assert caught.value.field == "statistics" and "covariances" in str(caught.value)
    for reserve in (None, {"share": 0.5, "terms": [{"kind": "expected"}]}):
        able = policy(
            {"kind": "expected"}, {"kind": "trig"}, statistics="optional", normalize="each", reserve=reserve
        )
        able.validate(model, tp_size=1, pp_size=1, statistics=old)
        left = able.with_statistics(old)
        assert [type(t).__name__ for t in left.all_terms] == ["Trig"]
        assert able.with_statistics(statistics(model, gen)) == able
