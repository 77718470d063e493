"""Models of the GPU tests: GQA ratios 1, 4 and 8, head dimensions 64 and 128."""

from __future__ import annotations

from engine.models import SPECS, ModelSpec

SPECS.update(
    {
        spec.name: spec
        for spec in (
            ModelSpec("gqa1-64", layers=2, query_heads=4, kv_heads=4, head_dim=64),
            ModelSpec("gqa4-128", family="qwen3", layers=3, query_heads=8, kv_heads=2, head_dim=128),
            ModelSpec("gqa8-64", layers=2, query_heads=8, kv_heads=1, head_dim=64),
        )
    }
)
