"""SGLang's KV pool as the kernels take it: one block a token, whatever the pool's pages.

A request's row of ``req_to_token`` names a slot for every token, so it is a block table with blocks of one token.
Pages matter only to what is allocated and freed. SGLang source: ``sglang/srt/mem_cache/memory_pool.py``.
"""

from __future__ import annotations

from typing import Any

import torch

from triattn.errors import ConfigError
from triattn.ops.interface import LayerCache, StridedCache


def layer_caches(pool: Any, model: Any, slots: int) -> list[LayerCache]:
    """The caches of this rank's layers, in order, as views [slots, kv_heads, 1, head_dim].

    Raises:
        ConfigError: a pool of a kind that is not known here.
    """
    kind = type(pool).__name__
    if kind != "MHATokenToKVPool":
        raise ConfigError("kv_pool", kind, "only the standard pool of keys and values is supported")
    layout = getattr(pool, "kv_cache_layout", "nhd")
    if layout != "nhd":
        raise ConfigError("kv_cache_layout", layout, "unset SGLANG_USE_HND_KVCACHE and other layouts")
    if getattr(pool, "is_quantized_kv_cache", False):
        raise ConfigError("kv_cache_dtype", str(pool.dtype), "use auto, bfloat16 or fp8_e4m3")
    if pool.head_dim != getattr(pool, "v_head_dim", pool.head_dim):
        raise ConfigError("v_head_dim", pool.v_head_dim, "values as wide as keys are required")
    fp8 = pool.store_dtype != pool.dtype
    if fp8 and pool.dtype != torch.float8_e4m3fn:
        raise ConfigError("kv_cache_dtype", str(pool.dtype), "use auto, bfloat16 or fp8_e4m3")
    scales = key_scales(model) if fp8 else {}
    shape = (pool.head_num, pool.head_dim)

    def view(buffer: torch.Tensor) -> torch.Tensor:
        if buffer.dim() != 3 or tuple(buffer.shape[1:]) != shape or buffer.shape[0] < slots:
            raise ConfigError("kv_pool", tuple(buffer.shape), f"expected at least [{slots}, *{shape}]")
        part = buffer[:slots].view(pool.dtype) if fp8 else buffer[:slots]
        return part.unsqueeze(2)

    first = getattr(pool, "start_layer", 0) or 0
    pairs = zip(pool.k_buffer, pool.v_buffer, strict=True)
    return [StridedCache(view(k), view(v), scales.get(first + i, 1.0)) for i, (k, v) in enumerate(pairs)]


def key_scales(model: Any) -> dict[int, torch.Tensor | float]:
    """What stored fp8 keys are multiplied by, by global layer."""
    found: dict[int, torch.Tensor | float] = {}
    for module in model.modules():
        layer, scale = getattr(module, "layer_id", None), getattr(module, "k_scale", None)
        if type(module).__name__ == "RadixAttention" and layer is not None and scale is not None:
            found[int(layer)] = scale
    return found
