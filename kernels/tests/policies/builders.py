"""Random small models, requests and policy documents."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import torch

from triattn import wire
from triattn.policies import ModelShape, Policy, Round
from triattn.statistics import BESIDE_KEYS, UNITS


def document(*terms: dict[str, Any], **fields: Any) -> wire.PolicyDocument:
    """A policy document from term dictionaries (wire names) and further fields."""
    return msgspec.convert({"name": "test", "terms": list(terms), **fields}, wire.PolicyDocument)


def policy(*terms: dict[str, Any], **fields: Any) -> Policy:
    """The compiled policy of such a document."""
    return Policy.of(document(*terms, **fields))


def shape(
    layers: int = 2,
    kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 8,
    rotary_dim: int | None = None,
    **fields: Any,
) -> ModelShape:
    """A whole model on one rank with frequencies 10000^(-2f/dim)."""
    rotary_dim = head_dim if rotary_dim is None else rotary_dim
    inv_freq = 10000.0 ** (-torch.arange(0, rotary_dim, 2).float() / max(rotary_dim, 1))
    return ModelShape(
        layer_ids=tuple(range(layers)),
        kv_head_ids=tuple(range(kv_heads)),
        query_head_ids=tuple(range(kv_heads * group)),
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        inv_freq=inv_freq,
        **fields,
    )


def statistics(model: ModelShape, generator: torch.Generator) -> SimpleNamespace:
    """Random query statistics with |E q| ≤ E|q|, and covariances of bands."""
    size = (model.layers, model.query_heads, model.rotary_dim // 2)
    real, imag, more = (torch.randn(size, generator=generator) for _ in range(3))
    # From a generator of its own, so that what tests draw next does not depend on it.
    own = torch.Generator().manual_seed(generator.initial_seed() + 1)
    a, b, c = (torch.randn(size, generator=own) for _ in range(3))
    return SimpleNamespace(
        q_mean_real=real,
        q_mean_imag=imag,
        q_abs_mean=torch.hypot(real, imag) + more.abs(),
        q_covariance=torch.stack([a * a + 0.1, b * b + c * c + 0.1, a * b]),
        learned_probe=probes(model, own),
    )


def probes(model: ModelShape, generator: torch.Generator) -> torch.Tensor:
    """Random networks of the term `probe`, as many units as the seed says; all inputs matter, the longest age is e⁴."""
    rows = (model.layers, model.kv_heads)
    units = UNITS[generator.initial_seed() % len(UNITS)]
    probe = torch.randn(*rows, model.head_dim + BESIDE_KEYS, units, generator=generator)
    probe[:, :, : model.head_dim] *= model.head_dim**-0.5
    probe[:, :, -1] = 4.0
    return probe


def request(model: ModelShape, n: int, generator: torch.Generator, **fields: Any) -> Round:
    """A round over `n` entries with random keys; positions are a random increasing subset, alike everywhere."""
    keys = torch.randn(model.layers, model.kv_heads, n, model.head_dim, generator=generator)
    values = torch.randn(keys.shape, generator=generator)
    computed = fields.pop("computed", n)
    queries = fields.pop("queries", None)
    positions = torch.randperm(computed, generator=generator)[:n].sort().values
    return Round(
        model=model,
        keys=lambda layer: keys[layer],
        values=lambda layer: values[layer],
        positions=positions.expand(model.layers, model.kv_heads, n),
        computed=computed,
        prompt_len=fields.pop("prompt_len", 0),
        pin_prompt=fields.pop("pin_prompt", False),
        statistics=fields.pop("statistics", None),
        queries=None if queries is None else lambda layer: queries[layer],
    )
