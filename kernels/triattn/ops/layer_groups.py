"""Caches as kernels take them: tables of addresses of layers that differ in nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import triton.language as tl
from torch import Tensor

from triattn.ops.interface import LayerCache, StridedCache
from triattn.policies import PolicyError

KEY_TYPES = {
    torch.float32: (tl.float32, 0),
    torch.float16: (tl.float16, 2),
    torch.bfloat16: (tl.bfloat16, 1),
    torch.float8_e4m3fn: (tl.float8e4nv, 1),
}
"""How a cache's elements are read, and of how many bfloat16 numbers each is exactly the sum (0: too many)."""

MOVE_TYPES = {1: tl.uint8, 2: tl.int16, 4: tl.int32}
"""How elements are moved, by their size in bytes."""


@dataclass(frozen=True)
class LayerGroup:
    """Layers whose caches differ only in their addresses.

    `layers` is int32 [n], local layer indices; `key_bases` and `value_bases` int64 [n], addresses. Strides, in
    elements, are of (block, head, token, dimension). Addresses are multiples of `align` bytes.
    """

    layers: Tensor
    key_bases: Tensor
    value_bases: Tensor
    key_strides: tuple[int, ...]
    value_strides: tuple[int, ...]
    dtype: torch.dtype
    align: int

    @cached_property
    def size(self) -> int:
        """Number of layers."""
        return self.layers.shape[0]

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Strides of K, then of V."""
        return (*self.key_strides, *self.value_strides)


def group_layers(caches: Sequence[LayerCache], device: torch.device) -> list[LayerGroup]:
    """Groups of layers, in order of their first.

    Raises:
        PolicyError: a cache that is not strided, or of a dtype that no kernel reads.
    """
    members: dict[tuple[object, ...], list[int]] = {}
    for i, cache in enumerate(caches):
        if not isinstance(cache, StridedCache) or cache.k.dtype not in KEY_TYPES:
            found = cache.k.dtype if isinstance(cache, StridedCache) else type(cache).__name__
            raise PolicyError(
                "kv_cache_dtype",
                str(found),
                f"no kernel for layer {i}'s cache; known are strided caches of {[str(t) for t in KEY_TYPES]}",
            )
        members.setdefault((cache.k.dtype, cache.k.stride(), cache.v.stride()), []).append(i)
    groups = []
    for layers in members.values():
        chosen = [caches[i] for i in layers]
        keys, values = [c.k.data_ptr() for c in chosen], [c.v.data_ptr() for c in chosen]
        first = chosen[0].k
        aligned = all(address % 16 == 0 for address in keys + values)
        groups.append(
            LayerGroup(
                layers=torch.tensor(layers, dtype=torch.int32, device=device),
                key_bases=torch.tensor(keys, dtype=torch.int64, device=device),
                value_bases=torch.tensor(values, dtype=torch.int64, device=device),
                key_strides=first.stride(),
                value_strides=chosen[0].v.stride(),
                dtype=first.dtype,
                align=16 if aligned else first.dtype.itemsize,
            )
        )
    return groups


def scales_of(caches: Sequence[LayerCache], which: str, device: torch.device) -> Tensor:
    """float32 [layers]: what each layer's stored keys ("k") or values are multiplied by, gathered without waiting."""
    scales = [c.key_scale if which == "k" else c.value_scale for c in caches]
    if not any(isinstance(s, Tensor) for s in scales):
        return torch.tensor(scales, dtype=torch.float32, device=device)
    return torch.stack([torch.as_tensor(s, dtype=torch.float32, device=device).reshape(()) for s in scales])
