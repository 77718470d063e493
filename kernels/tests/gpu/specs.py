"""Models of the GPU tests: GQA ratios 1, 4 and 8, head dimensions 64 and 128.

Those whose names begin with "bf16" are SGLang's: their weights are bfloat16 numbers.
"""

from __future__ import annotations

from dataclasses import replace

from engine.models import SPECS, ModelSpec

_GQA1 = ModelSpec("gqa1-64", layers=2, query_heads=4, kv_heads=4, head_dim=64)
_GQA4 = ModelSpec("gqa4-128", family="qwen3", layers=3, query_heads=8, kv_heads=2, head_dim=128)
_GQA8 = ModelSpec("gqa8-64", layers=2, query_heads=8, kv_heads=1, head_dim=64)
SPECS.update({spec.name: spec for spec in (_GQA1, _GQA4, _GQA8)})
for _spec in (_GQA1, _GQA4, _GQA8):
    _name = f"bf16-{_spec.name}"
    SPECS[_name] = replace(_spec, name=_name, family="qwen3", numbers="bfloat16")
