"""The probe derived anew in float64, entry by entry, from its published sum; and what its inputs depend on."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from tests.policies.builders import request, shape, statistics
from triattn.policies import Round
from triattn.policies.probe import NEAREST, Probe
from triattn.statistics import UNITS

D, ROTARY = 12, 8


def derived(ctx: Round, layer: int, head: int, inv_freq: list[float], pairing: str) -> list[float]:
    """Scores of one layer and KV head, with the sum over units and dimensions written out."""
    keys, positions = ctx.keys(layer)[head].double(), ctx.positions[layer, head].tolist()
    weights: Any = ctx.statistics.learned_probe[layer, head].double()  # type: ignore[union-attr]
    straight = []
    for key, position in zip(keys.tolist(), positions, strict=True):
        x = list(key)
        for f, omega in enumerate(inv_freq):
            a, b = (f, f + len(inv_freq)) if pairing == "half" else (2 * f, 2 * f + 1)
            c, s = math.cos(position * omega), math.sin(position * omega)
            x[a], x[b] = c * key[a] + s * key[b], c * key[b] - s * key[a]
        straight.append(x)
    scores = []
    for i, x in enumerate(straight):
        like = max([math.cos(angle(x, y)) for y in straight[i + 1 :]], default=-1.0)
        inputs = [*x, min(math.log(ctx.computed - positions[i]), float(weights[D + 5, 0])), like]
        inputs.append(math.log(max(1 - like, NEAREST)))
        total = 0.0
        for u in range(weights.shape[1]):
            hidden = sum(value * float(weights[d, u]) for d, value in enumerate(inputs)) + float(
                weights[D + 3, u]
            )
            total += float(weights[D + 4, u]) * hidden / (1 + math.exp(-hidden))
        scores.append(total)
    return scores


def angle(x: list[float], y: list[float]) -> float:
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return math.acos(max(-1.0, min(1.0, dot / (math.hypot(*x) * math.hypot(*y)))))


@pytest.mark.parametrize(("pairing", "seed"), [("half", 4), ("interleaved", 5), ("half", 6)])
def test_it_is_the_sum(pairing: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    this = shape(layers=2, kv_heads=2, group=2, head_dim=D, rotary_dim=ROTARY, pairing=pairing)
    ctx = request(this, 30, generator, computed=90, statistics=statistics(this, generator))
    assert ctx.statistics.learned_probe.shape[-1] == UNITS[(seed + 1) % 3]
    for layer in range(2):
        found = Probe().score(ctx, layer)
        for head in range(2):
            wanted = derived(ctx, layer, head, this.inv_freq.double().tolist(), pairing)
            # Cosines are those of float16.
            torch.testing.assert_close(
                found[head].double(), torch.tensor(wanted).double(), rtol=5e-3, atol=5e-3
            )


def test_what_else_is_there_changes_nothing() -> None:
    """Without the entries between, an entry scores the same, as long as the ones that repeat it are remembered."""
    generator = torch.Generator().manual_seed(5)
    this = shape(layers=1, kv_heads=2, group=2, head_dim=D, rotary_dim=ROTARY)
    ctx = request(this, 30, generator, computed=90, statistics=statistics(this, generator))
    whole = Probe().score(ctx, 0)
    some = torch.tensor([0, 3, 4, 11, 29])
    best = -ctx.scores[next(iter(ctx.scores))]
    fewer = dataclasses.replace(
        ctx, keys=lambda layer: ctx.keys(layer)[:, some], positions=ctx.positions[:, :, some]
    )
    fewer.scores[next(iter(ctx.scores))] = -best[:, some]
    torch.testing.assert_close(Probe().score(fewer, 0), whole[:, some])


def test_a_token_grows_no_older_than_calibration_saw() -> None:
    generator = torch.Generator().manual_seed(6)
    this = shape(layers=1, kv_heads=1, group=1, head_dim=D, rotary_dim=ROTARY)
    ctx = request(this, 20, generator, statistics=statistics(this, generator))
    near, far, further = (
        Probe().score(dataclasses.replace(ctx, computed=computed), 0) for computed in (30, 100, 5000)
    )
    assert torch.equal(far, further) and not torch.equal(near, far)
