"""The preset `triattention` against the paper's formulas (arXiv 2604.04921, eq. 5-8), derived anew in float64.

Magnitudes and phases, an angle for each band, distance and head: nothing is folded, and no code is shared.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch

from tests.policies.builders import request, statistics
from tests.policies.builders import shape as random_shape
from triattn.config import preset
from triattn.policies import ModelShape, Policy
from triattn.statistics import Statistics

SHIPPED = Path(__file__).parents[3] / "stats"
N, COMPUTED, SINKS, WINDOW = 24, 3000, 2, 3


@functools.cache
def model(name: str) -> tuple[ModelShape, SimpleNamespace | Statistics]:
    """Three layers of a model's statistics, or random ones."""
    if name == "random":
        shape = random_shape(layers=3, kv_heads=2, group=3, head_dim=16, attention_scaling=1.1)
        return shape, statistics(shape, torch.Generator().manual_seed(4))
    stats = Statistics.load(SHIPPED / f"{name}.safetensors")
    geometry = stats.model
    assert geometry.rotary is not None
    layers = (0, 17, geometry.layers - 1)
    shape = ModelShape(
        layer_ids=layers,
        kv_head_ids=tuple(range(geometry.kv_heads)),
        query_head_ids=tuple(range(geometry.query_heads)),
        head_dim=geometry.head_dim,
        rotary_dim=geometry.rotary.dim,
        inv_freq=stats.inv_freq,
        attention_scaling=geometry.rotary.attention_scaling,
        pairing=geometry.rotary.pairing,
    )
    return shape, stats.part(layers, slice(0, geometry.query_heads))


@functools.cache
def heads(name: str, offsets: str, residual: bool) -> np.ndarray:
    """Scores [layers, query_heads, N] of the request of `round_of`, before any normalisation."""
    shape, stats = model(name)
    ctx = round_of(name)
    bands = shape.rotary_dim // 2
    omega = shape.inv_freq.double().numpy()
    mean = stats.q_mean_real.double().numpy() + 1j * stats.q_mean_imag.double().numpy()
    size = stats.q_abs_mean.double().numpy()
    out = np.zeros((shape.layers, shape.query_heads, N))
    for layer, head in itertools.product(range(shape.layers), range(shape.query_heads)):
        key = ctx.keys(layer)[head // shape.group].double().numpy()
        pair = key[:, :bands] + 1j * key[:, bands : 2 * bands]
        position = ctx.positions[layer, head // shape.group].numpy()
        # The paper's k is the key before rotation, and Δ the distance of a query `o` tokens ahead.
        before = pair * np.exp(-1j * omega * position[:, None])
        distances = []
        for o in 2 ** np.arange(17):
            delta = COMPUTED + o - position[:, None]
            phase = np.angle(mean[layer, head]) - np.angle(before)
            product = np.abs(mean[layer, head]) * np.abs(before)
            distances.append((product * np.cos(omega * delta + phase)).sum(1))
        trig = np.mean(distances, 0) if offsets == "mean" else np.max(distances, 0)
        length = np.abs(mean[layer, head])
        # 1 - R_f, times E|q_f|.
        spread = (1 - length / size[layer, head]) * size[layer, head] if residual else size[layer, head]
        out[layer, head] = shape.attention_scaling**2 * (trig + (spread * np.abs(before)).sum(1))
    return out


@functools.cache
def round_of(name: str):
    shape, stats = model(name)
    gen = torch.Generator().manual_seed(5)
    return request(shape, N, gen, computed=COMPUTED, statistics=stats)


@pytest.mark.parametrize("name", ["random", "qwen3-8b", "gpt-oss-120b"])
@pytest.mark.parametrize(("offsets", "residual"), [("mean", True), ("max", True), ("mean", False)])
def test_every_mode_and_aggregation(name: str, offsets: str, residual: bool) -> None:
    shape, _ = model(name)
    ctx = round_of(name)
    raw = heads(name, offsets, residual)
    position = ctx.positions.numpy()
    free = (position >= SINKS) & (position < COMPUTED - WINDOW)
    document = preset("triattention")
    for selection, normalize, group, layers in itertools.product(
        ("per_head", "per_layer_per_head", "union"), ("sum", "none"), ("max", "mean"), ("mean", "max")
    ):
        terms = [msgspec.structs.replace(document.terms[0], offsets=offsets)]
        terms.append(msgspec.structs.replace(document.terms[1], residual=residual))
        changed = msgspec.structs.replace(
            document,
            terms=terms,
            selection=selection,
            normalize=normalize,
            group_aggregation=group,
            layer_aggregation=layers,
            pin=msgspec.structs.replace(document.pin, prompt=False, sinks=SINKS, window=WINDOW),
        )
        found = Policy.of(changed).scores(ctx).double().numpy()
        scores = raw.reshape(shape.layers, shape.kv_heads, shape.group, N)
        if normalize == "sum":
            seen = np.broadcast_to(free[:, :, None], scores.shape)
            mean = scores.mean(-1, keepdims=True, where=seen)
            scores = (scores - mean) / scores.std(-1, keepdims=True, where=seen)
        scores = scores.max(2) if group == "max" else scores.mean(2)
        if selection == "union":
            scores = scores.max((0, 1), keepdims=True)
        elif selection == "per_head":
            scores = scores.mean(0, keepdims=True) if layers == "mean" else scores.max(0, keepdims=True)
        pinned = np.isinf(found)
        assert (pinned == ~free[: found.shape[0], : found.shape[1]]).all()
        scale = np.abs(scores[~pinned]).max()
        np.testing.assert_allclose(found[~pinned], scores[~pinned], rtol=1e-4, atol=2e-5 * scale)
