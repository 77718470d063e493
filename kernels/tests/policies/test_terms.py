"""Score terms against derivations that share no code with them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.policies.builders import request, shape, statistics
from triattn.policies.gumbel import Gumbel
from triattn.policies.keydiff import KeyDiff
from triattn.policies.magnitude import KeyNorm, ValueNorm, ValueRange
from triattn.policies.norm import Norm
from triattn.policies.random import Random, uniform
from triattn.policies.recency import Recency
from triattn.policies.superseded import Superseded
from triattn.policies.trig import Trig, offsets


def rotate(vector: torch.Tensor, position: int, model) -> torch.Tensor:
    """Rotary embedding as models do it: x cos + rotate_half(x) sin, float64; vector [..., head_dim]."""
    bands = model.rotary_dim // 2
    angle = position * model.inv_freq.double()
    if model.pairing == "half":
        cos, sin = (f(torch.cat([angle, angle])) for f in (torch.cos, torch.sin))
        x = vector[..., : model.rotary_dim].double()
        turned = torch.cat([-x[..., bands:], x[..., :bands]], dim=-1)
    else:
        cos, sin = (f(angle.repeat_interleave(2)) for f in (torch.cos, torch.sin))
        x = vector[..., : model.rotary_dim].double()
        turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    scale = model.attention_scaling
    return torch.cat([(x * cos + turned * sin) * scale, vector[..., model.rotary_dim :].double()], dim=-1)


def centre(stats, layer: int, head: int, model) -> torch.Tensor:
    """The mean query as a vector of the rotary dimensions, in the model's own order."""
    real, imag = stats.q_mean_real[layer, head], stats.q_mean_imag[layer, head]
    if model.pairing == "half":
        return torch.cat([real, imag])
    return torch.stack([real, imag], dim=-1).flatten()


@pytest.mark.parametrize("aggregation", ["mean", "max"])
@pytest.mark.parametrize(
    ("rotary", "pairing", "scaling"),
    [(16, "half", 1.0), (12, "half", 1.2), (16, "interleaved", 1.0), (4, "interleaved", 0.9)],
)
def test_trig_is_the_dot_product_with_the_query_centre_at_future_positions(
    aggregation, rotary, pairing, scaling
):
    gen = torch.Generator().manual_seed(1)
    model = shape(
        layers=2,
        kv_heads=2,
        group=3,
        head_dim=16,
        rotary_dim=rotary,
        pairing=pairing,
        attention_scaling=scaling,
    )
    stats = statistics(model, gen)
    ctx = request(model, 9, gen, computed=5000, statistics=stats)
    for layer in range(2):
        actual = Trig(aggregation, 1000).score(ctx, layer)
        for head in range(6):
            keys = ctx.keys(layer)[head // 3][:, :rotary].double()
            # The key in the cache carries one factor of the scaling already; the score's convention squares it.
            dots = torch.stack(
                [
                    keys @ rotate(centre(stats, layer, head, model), 5000 + o, model)[:rotary] * scaling
                    for o in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
                ]
            )
            expected = dots.mean(0) if aggregation == "mean" else dots.amax(0)
            torch.testing.assert_close(actual[head].double(), expected, rtol=1e-4, atol=1e-4)


def test_trig_depends_only_on_the_distance():
    """Rotating a key to position p and scoring at t equals an unrotated key scored at t − p."""
    gen = torch.Generator().manual_seed(2)
    model = shape(layers=1, kv_heads=1, group=1, head_dim=8)
    stats = statistics(model, gen)
    plain = request(model, 5, gen, computed=70_000 - 69_000, statistics=stats)
    keys = rotate(plain.keys(0), 69_000, model).float()
    moved = dataclasses.replace(plain, keys=lambda _: keys, computed=70_000)
    a, b = (Trig("mean", 65536).score(c, 0) for c in (plain, moved))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_norm_weighs_magnitudes():
    gen = torch.Generator().manual_seed(3)
    model = shape(layers=1, kv_heads=2, group=2, head_dim=6, attention_scaling=1.5)
    stats = statistics(model, gen)
    ctx = request(model, 4, gen, statistics=stats)
    for residual in (True, False):
        actual = Norm(residual).score(ctx, 0)
        for head in range(4):
            for i, key in enumerate(ctx.keys(0)[head // 2].tolist()):
                total = 0.0
                for f in range(3):
                    mean = abs(complex(stats.q_mean_real[0, head, f], stats.q_mean_imag[0, head, f]))
                    weight = float(stats.q_abs_mean[0, head, f]) - (mean if residual else 0.0)
                    total += 1.5**2 * weight * abs(complex(key[f], key[f + 3]))
                assert float(actual[head, i]) == pytest.approx(total, rel=1e-5)


def test_keydiff_prefers_keys_unlike_the_mean():
    gen = torch.Generator().manual_seed(4)
    model = shape(layers=1, kv_heads=1, group=1, head_dim=4)
    keys = torch.tensor([[[1.0, 0, 0, 0], [2.0, 0, 0, 0], [3.0, 0.1, 0, 0], [0, 0, -5.0, 0]]])
    ctx = dataclasses.replace(request(model, 4, gen), keys=lambda _: keys)
    score = KeyDiff().score(ctx, 0)[0].double()
    unit = keys[0].double() / keys[0].double().norm(dim=1, keepdim=True)
    mean = unit.mean(0)
    torch.testing.assert_close(score, -(unit @ mean) / mean.norm(), rtol=1e-6, atol=1e-6)
    assert int(score.argmax()) == 3
    assert bool(torch.isfinite(KeyDiff().score(dataclasses.replace(ctx, keys=lambda _: keys * 0), 0)).all())


def test_random_is_pinned_by_vectors_and_shared_as_the_selection_says():
    def draw(seed: int, computed: int, layer: int, head: int, position: int) -> float:
        """The same hash in plain integers."""

        def mix(x: int) -> int:
            x ^= x >> 16
            x = x * 0x85EBCA6B % 2**32
            x ^= x >> 13
            x = x * 0xC2B2AE35 % 2**32
            return x ^ x >> 16

        state = mix(seed)
        for value in (computed, layer, head, position):
            state = mix((state + 0x9E3779B9) % 2**32 ^ value)
        return (state >> 8) / 2**24

    cases = torch.randint(0, 2**32, (50, 5), generator=torch.Generator().manual_seed(5))
    assert uniform(*cases.unbind(1)).tolist() == [draw(*c) for c in cases.tolist()]
    gen = torch.Generator().manual_seed(6)
    ctx = request(shape(layers=2, kv_heads=2), 2000, gen, computed=4000)
    own, head, union = (
        torch.stack([Random(7, s).score(ctx, i) for i in range(2)])
        for s in ("per_layer_per_head", "per_head", "union")
    )
    assert len({tuple(own[i, j].tolist()) for i in range(2) for j in range(2)}) == 4
    assert torch.equal(head[0], head[1]) and not torch.equal(head[0, 0], head[0, 1])
    assert torch.equal(union[0], union[1]) and torch.equal(union[0, 0], union[0, 1])
    assert abs(float(own.mean()) - 0.5) < 0.02 and float(own.min()) >= 0 and float(own.max()) < 1
    later = dataclasses.replace(ctx, computed=4001)
    assert not torch.equal(Random(7, "union").score(later, 0), union[0])
    assert not torch.equal(Random(8, "union").score(ctx, 0), union[0])


def test_recency_is_the_position():
    ctx = request(shape(), 5, torch.Generator().manual_seed(7), computed=100)
    assert torch.equal(Recency().score(ctx, 1).long(), ctx.positions[1])


def test_offsets_are_the_powers_of_two():
    assert (
        offsets(1) == [1]
        and offsets(65536) == [2**e for e in range(17)]
        and offsets(65535) == [2**e for e in range(16)]
    )


@pytest.mark.parametrize(
    ("rotary", "pairing"), [(8, "half"), (4, "half"), (8, "interleaved"), (4, "interleaved")]
)
def test_superseded_compares_keys_as_they_were_before_the_rotation(rotary, pairing):
    gen = torch.Generator().manual_seed(8)
    model = shape(layers=1, kv_heads=2, group=1, head_dim=8, rotary_dim=rotary, pairing=pairing)
    ctx = request(model, 12, gen, computed=90_000)
    raw = torch.randn(2, 12, 8, generator=gen)
    # Positions need not rise with the row: a compacted row has its holes filled from the tail.
    positions = ctx.positions[:, :, torch.randperm(12, generator=gen)]
    cached = torch.stack(
        [
            torch.stack([rotate(raw[h, i], int(positions[0, h, i]), model).float() for i in range(12)])
            for h in range(2)
        ]
    )
    ctx = dataclasses.replace(ctx, keys=lambda _: cached, positions=positions)
    score = Superseded("key").score(ctx, 0)
    for head in range(2):
        unit = raw[head].double() / raw[head].double().norm(dim=-1, keepdim=True)
        for i in range(12):
            later = [
                float(unit[i] @ unit[j]) for j in range(12) if positions[0, head, j] > positions[0, head, i]
            ]
            assert float(score[head, i]) == pytest.approx(-max(later, default=-1.0), abs=1e-3)
    repeated = raw.clone()
    repeated[:, int(positions[0, 0].argmax())] = 2 * repeated[:, int(positions[0, 0].argmin())]
    values = dataclasses.replace(ctx, values=lambda _: repeated)
    score = Superseded("value").score(values, 0)[0]
    assert float(score[int(positions[0, 0].argmin())]) == pytest.approx(-1.0, abs=1e-3)
    assert float(score[int(positions[0, 0].argmax())]) == 1.0


def test_superseded_survives_what_is_not_a_number():
    gen = torch.Generator().manual_seed(9)
    ctx = request(shape(layers=1, kv_heads=1, group=1), 5, gen)
    keys = torch.randn(1, 5, 8, generator=gen)
    keys[0, 3] = float("nan")
    score = Superseded("key").score(dataclasses.replace(ctx, keys=lambda _: keys), 0)[0]
    assert score.isnan().tolist() == [False, False, False, True, False]


def test_magnitudes():
    ctx = request(shape(layers=1, kv_heads=2, group=1), 7, torch.Generator().manual_seed(10))
    keys, values = ctx.keys(0).tolist(), ctx.values(0).tolist()
    length = KeyNorm().score(ctx, 0), ValueNorm(False).score(ctx, 0), ValueNorm(True).score(ctx, 0)
    for head in range(2):
        for i in range(7):
            k, v = (math.sqrt(math.fsum(x * x for x in e[head][i])) for e in (keys, values))
            assert [float(x[head, i]) for x in length] == pytest.approx([k, v, math.log(v)], rel=1e-5)
            spread = max(values[head][i]) - min(values[head][i])
            assert float(ValueRange().score(ctx, 0)[head, i]) == pytest.approx(spread, rel=1e-6)
    zero = dataclasses.replace(ctx, values=lambda _: ctx.values(0) * 0)
    assert bool(torch.isfinite(ValueNorm(True).score(zero, 0)).all())


def test_gumbel_draws_in_proportion_and_apart_from_random():
    ctx = request(shape(layers=1, kv_heads=1, group=1), 20_000, torch.Generator().manual_seed(11))
    noise = Gumbel(3, "per_layer_per_head").score(ctx, 0)[0].double()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.03)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.1)
    uniform_noise = Random(3, "per_layer_per_head").score(ctx, 0)[0].double()
    assert abs(float(torch.corrcoef(torch.stack([noise, uniform_noise]))[0, 1])) < 0.03
    # The highest of two with log-weights ln 3 and 0 is the first in three cases of four.
    first = (noise[::2] + math.log(3.0) > noise[1::2]).double().mean()
    assert float(first) == pytest.approx(0.75, abs=0.02)
