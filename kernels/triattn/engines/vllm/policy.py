"""Policies as vLLM's configuration object sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from triattn import wire
from triattn.engines import policy as neutral
from triattn.engines.policy import PolicyInForce, can_compress, load_statistics
from triattn.policies import ModelShape

__all__ = ["PolicyInForce", "can_compress", "check_policy", "load_statistics", "shape_of"]


def shape_of(
    config: Any,
    geometry: wire.ModelGeometry,
    layers: Sequence[int] | None = None,
    kv_heads: Sequence[int] | None = None,
    query_heads: Sequence[int] | None = None,
) -> ModelShape:
    """The served model's shape: of the whole model, or of one rank given the global indices it holds."""
    return neutral.model_shape(config.model_config.hf_text_config, geometry, layers, kv_heads, query_heads)


def check_policy(policy: PolicyInForce, geometry: wire.ModelGeometry, config: Any) -> None:
    """Refuse a policy that this engine could not carry out.

    Raises:
        ConfigError: with the field, its value and the remedy.
    """
    parallel = config.parallel_config
    neutral.check_policy(
        policy,
        geometry,
        config.model_config.hf_text_config,
        parallel.tensor_parallel_size,
        parallel.pipeline_parallel_size,
    )
