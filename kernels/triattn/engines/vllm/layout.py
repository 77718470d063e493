"""Where a layer's keys and values lie: strided views, or vLLM's permuted CPU blocks.

vLLM sources: ``vllm/v1/attention/backends/cpu_attn.py`` (a block of one head is K then V, each permuted for the
processor's instruction set) and ``vllm/v1/kv_cache_interface.py``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from triattn.config import ConfigError
from triattn.ops.interface import IndexedCache, LayerCache, StridedCache


def layer_names(group: Any) -> list[str]:
    """A KV cache group's layers in the order of the model."""
    from vllm.model_executor.models.utils import extract_layer_index

    return sorted(group.layer_names, key=extract_layer_index)


def layer_caches(runner: Any, group: Any) -> tuple[list[int], list[LayerCache]]:
    """Global layer indices of a KV cache group on this rank, ascending, and their caches.

    Raises:
        ConfigError: a cache of a kind that is not known here.
    """
    from vllm.model_executor.models.utils import extract_layer_index

    context = runner.compilation_config.static_forward_context
    names = layer_names(group)
    spec = group.kv_cache_spec
    return [extract_layer_index(n) for n in names], [_layer_cache(context[n], n, spec) for n in names]


def _layer_cache(layer: Any, name: str, spec: Any) -> LayerCache:
    cache_tensor = layer.kv_cache
    if isinstance(cache_tensor, (list, tuple)):
        cache_tensor = cache_tensor[0]
    if getattr(layer, "kv_sharing_target_layer_name", None) is not None:
        raise ConfigError("kv_sharing", name, "layers that share a KV cache are not supported")
    heads, size, dim = spec.num_kv_heads, spec.block_size, spec.head_size
    if getattr(spec, "head_size_v", dim) not in (None, dim):
        raise ConfigError("head_size_v", spec.head_size_v, "values as wide as keys are required")
    if cache_tensor.device.type == "cpu":
        isa = getattr(layer, "isa", None) or layer.impl.isa
        keys, values = cpu_permutation(isa, size, dim, cache_tensor.dtype)
        data = cache_tensor.view(-1, heads, 2 * size * dim)
        views = _strided(data, keys), _strided(data, values)
        if views[0] is not None and views[1] is not None:
            return StridedCache(*views)
        return IndexedCache(data, keys, values)
    if spec.dtype.itemsize == 1:
        cache_tensor = cache_tensor.view(torch.float8_e4m3fn)
    scale = getattr(layer, "_k_scale", 1.0)
    if cache_tensor.dim() == 4 and tuple(cache_tensor.shape[1:]) == (heads, size, 2 * dim):
        return StridedCache(cache_tensor[..., :dim], cache_tensor[..., dim:], scale)
    if cache_tensor.dim() == 5 and tuple(cache_tensor.shape[1:]) == (2, size, heads, dim):
        return StridedCache(cache_tensor[:, 0].transpose(1, 2), cache_tensor[:, 1].transpose(1, 2), scale)
    if (
        cache_tensor.dim() == 5
        and cache_tensor.shape[0] == 2
        and tuple(cache_tensor.shape[2:]) == (size, heads, dim)
    ):
        return StridedCache(cache_tensor[0].transpose(1, 2), cache_tensor[1].transpose(1, 2), scale)
    raise ConfigError(
        "kv_cache_layout",
        tuple(cache_tensor.shape),
        f"the layout of {name} is not known; use the default layout",
    )


@cache
def cpu_permutation(
    isa: str, block_size: int, head_dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where vLLM's own write puts element (token, dimension) of a block of one head.

    Found by writing known values through the operator that serving uses, so whatever the instruction set does
    is followed. Each value is a number below 256, which every supported dtype holds exactly.

    Returns:
        int64 [block_size, head_dim] twice: flat offsets of K and of V in the 2 * block_size * head_dim elements.
    """
    import vllm._custom_ops as ops

    total = block_size * head_dim
    number = torch.arange(total).view(block_size, 1, head_dim)
    found = torch.zeros(2 * total, dtype=torch.int64)
    digits = 3 if total > 65536 else 2
    for digit in range(digits):
        part = ((number >> (8 * digit)) & 255).to(dtype).contiguous()
        block = torch.zeros(1, 1, 2 * block_size, head_dim, dtype=dtype)
        keys, values = block.chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(part, part.clone(), keys, values, torch.arange(block_size), isa)
        found += block.flatten().long() << (8 * digit)
    maps = []
    for offset in (0, total):
        index = torch.empty(total, dtype=torch.int64)
        index[found[offset : offset + total]] = torch.arange(offset, offset + total)
        if not torch.equal(found[offset : offset + total].sort().values, torch.arange(total)):
            raise ConfigError(
                "attention.isa", isa, f"its cache layout of {dtype} is not a permutation; use another --dtype"
            )
        maps.append(index.view(block_size, head_dim))
    return maps[0], maps[1]


def _strided(data: torch.Tensor, index: torch.Tensor) -> torch.Tensor | None:
    """``data[..., index]`` as a view [blocks, heads, block_size, head_dim], where strides can express it."""
    first, per_token, per_dim = (
        int(index[0, 0]),
        int(index[1, 0] - index[0, 0]),
        int(index[0, 1] - index[0, 0]),
    )
    rows, columns = index.shape
    regular = first + per_token * torch.arange(rows)[:, None] + per_dim * torch.arange(columns)
    if not torch.equal(index, regular):
        return None
    shape = (*data.shape[:2], rows, columns)
    return data.as_strided(
        shape, (data.stride(0), data.stride(1), per_token, per_dim), data.storage_offset() + first
    )
