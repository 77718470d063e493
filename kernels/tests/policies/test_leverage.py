"""The term `leverage` against the singular values of the centred keys (Compactor, arXiv 2507.08143), in float64."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policies.builders import request, shape
from tests.policies.test_terms import rotate
from triattn.policies import ModelShape, Round
from triattn.policies.leverage import SKETCH, Leverage, sketch


def rotated(model: ModelShape, raw: torch.Tensor, gen: torch.Generator) -> Round:
    """A round over these keys [heads, N, D] as they lie in a cache, far into a text, in an order of its own."""
    n = raw.shape[1]
    ctx = request(model, n, gen, computed=90_000)
    positions = ctx.positions[:, :, torch.randperm(n, generator=gen)]
    cached = torch.stack(
        [
            torch.stack([rotate(raw[h, i], int(positions[0, h, i]), model).float() for i in range(n)])
            for h in range(raw.shape[0])
        ]
    )
    return dataclasses.replace(ctx, keys=lambda _: cached, positions=positions)


def derived(raw: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Ridge leverage by singular values: Σ_j u_ij² σ_j² / (σ_j² + λ), λ a thousandth of the mean of all σ²."""
    x = raw @ phi
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    ridge = 1e-3 * (s**2).sum() / phi.shape[1]
    return (u**2 * (s**2 / (s**2 + ridge))).sum(1)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    pairing=st.sampled_from(["half", "interleaved"]),
    bands=st.integers(1, 6),
    more=st.integers(0, 3),
    n=st.integers(2, 20),
)
def test_it_is_the_leverage_of_keys_before_the_rotation(
    seed: int, pairing: str, bands: int, more: int, n: int
) -> None:
    gen = torch.Generator().manual_seed(seed)
    model = shape(layers=1, kv_heads=2, group=1, head_dim=2 * bands + more, rotary_dim=2 * bands)
    model = dataclasses.replace(model, pairing=pairing)
    raw = torch.randn(2, n, model.head_dim, generator=gen) + 5
    score = Leverage(0).score(rotated(model, raw, gen), 0)
    for head in range(2):
        # A small head is compared as it is.
        wanted = derived(raw[head].double().numpy(), np.eye(model.head_dim))
        np.testing.assert_allclose(score[head].double().numpy(), wanted, rtol=2e-2, atol=2e-2)


def test_a_large_head_is_sketched() -> None:
    gen = torch.Generator().manual_seed(1)
    model = shape(layers=1, kv_heads=1, group=1, head_dim=64)
    raw = torch.randn(1, 100, 64, generator=gen)
    phi = sketch(7, 64).double().numpy()
    score = Leverage(7).score(rotated(model, raw, gen), 0)[0].double().numpy()
    np.testing.assert_allclose(score, derived(raw[0].double().numpy(), phi), rtol=2e-3)
    # As many dimensions as the sketch has, less what the ridge takes.
    assert SKETCH - 2 < score.sum() < SKETCH


def test_the_sketch_is_normal_and_the_same_everywhere() -> None:
    phi = sketch(3, 256).double()
    assert phi.shape == (256, SKETCH) and torch.equal(sketch(3, 256), phi.float())
    assert abs(float(phi.mean())) < 0.03 and abs(float(phi.var()) - 1) < 0.05
    assert abs(float((phi.abs() < 0.6745).double().mean()) - 0.5) < 0.02
    assert not torch.equal(sketch(4, 256), sketch(3, 256))
    # A head's dimensions beyond those of a smaller one change nothing of these.
    assert torch.equal(sketch(3, 256)[:64], sketch(3, 64))
    # Pinned: another hash, or another order of its inputs, is another policy.
    pinned = [[-0.621915, 0.64598], [-0.182332, -0.308018]]
    torch.testing.assert_close(sketch(3, 64)[:2, :2], torch.tensor(pinned), rtol=0, atol=1e-6)
    assert torch.equal(sketch(3, SKETCH), torch.eye(SKETCH))


def test_what_repeats_scores_low_and_what_is_alone_high() -> None:
    gen = torch.Generator().manual_seed(2)
    model = shape(layers=1, kv_heads=1, group=1, head_dim=8)
    raw = torch.randn(1, 40, 8, generator=gen) * torch.tensor([1.0] * 4 + [0.01] * 4)
    raw[0, 11, 6] = 3.0
    score = Leverage(0).score(rotated(model, raw, gen), 0)[0]
    assert int(score.argmax()) == 11 and float(score[11]) > 0.8
    assert bool((score >= 0).all()) and float(score.max()) <= 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_spoils_only_itself(bad: float) -> None:
    gen = torch.Generator().manual_seed(3)
    model = shape(layers=1, kv_heads=1, group=1, head_dim=8)
    ctx = request(model, 12, gen)
    keys = ctx.keys(0).clone()
    keys[0, 5, 1] = bad
    score = Leverage(0).score(dataclasses.replace(ctx, keys=lambda _: keys), 0)[0]
    assert score.isnan().nonzero().flatten().tolist() == [5]
    same = dataclasses.replace(ctx, keys=lambda _: torch.ones(1, 12, 8), positions=ctx.positions * 0)
    assert Leverage(0).score(same, 0)[0].abs().max() < 1e-6
