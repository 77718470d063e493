"""A policy in force in this engine: what travels to the workers, and whether it can work here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from triattn import wire
from triattn.config import ConfigError
from triattn.model import inv_freq
from triattn.policies import ModelShape, Policy
from triattn.statistics import Statistics


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """A policy document with its revision and the path of its statistics, as every rank gets it."""

    revision: int
    document: wire.PolicyDocument
    statistics: str | None


def shape_of(
    config: Any,
    geometry: wire.ModelGeometry,
    layers: Sequence[int] | None = None,
    kv_heads: Sequence[int] | None = None,
    query_heads: Sequence[int] | None = None,
) -> ModelShape:
    """The served model's shape: of the whole model, or of one rank given the global indices it holds."""
    if geometry.rotary is None:
        frequencies, scaling, dim, pairing = torch.empty(0), 1.0, 0, "half"
    else:
        frequencies, scaling = inv_freq(config.model_config.hf_text_config)
        dim, pairing = geometry.rotary.dim, geometry.rotary.pairing
    return ModelShape(
        layer_ids=tuple(layers if layers is not None else range(geometry.layers)),
        kv_head_ids=tuple(kv_heads if kv_heads is not None else range(geometry.kv_heads)),
        query_head_ids=tuple(query_heads if query_heads is not None else range(geometry.query_heads)),
        head_dim=geometry.head_dim,
        rotary_dim=dim,
        inv_freq=frequencies,
        attention_scaling=scaling,
        pairing=pairing,
    )


def can_compress(policy: PolicyInForce) -> bool:
    """Whether rounds can run: a policy that never compresses may come without the statistics it would need."""
    return policy.statistics is not None or not Policy.of(policy.document).needs_statistics


def load_statistics(policy: PolicyInForce, geometry: wire.ModelGeometry) -> Statistics | None:
    """The statistics that a policy needs, checked against the served model; None if it needs none.

    Raises:
        ConfigError: they are missing, damaged or of another model.
    """
    if not Policy.of(policy.document).needs_statistics:
        return None
    if policy.statistics is None and not policy.document.budget:
        return None
    if policy.statistics is None:
        raise ConfigError(
            "statistics",
            None,
            f"policy {policy.document.name!r} scores with statistics of the model's queries; make them with "
            "`triattn calibrate MODEL` and name the file, or use a policy without trig and norm terms",
        )
    statistics = Statistics.load(policy.statistics)
    statistics.check(geometry)
    return statistics


def check_policy(policy: PolicyInForce, geometry: wire.ModelGeometry, config: Any) -> None:
    """Refuse a policy that this engine could not carry out.

    Raises:
        ConfigError: with the field, its value and the remedy.
    """
    parallel = config.parallel_config
    statistics = load_statistics(policy, geometry)
    if not can_compress(policy):
        return
    Policy.of(policy.document).validate(
        shape_of(config, geometry),
        tp_size=parallel.tensor_parallel_size,
        pp_size=parallel.pipeline_parallel_size,
        statistics=statistics,
    )
