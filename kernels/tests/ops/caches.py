"""Random paged caches of every layout, and rounds over them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch

from triattn.ops.interface import IndexedCache, RoundBatch, StridedCache
from triattn.plan import RoundPlan
from triattn.policies import ModelShape

LAYOUTS = ("nhd", "hnd", "split", "transposed", "indexed")


def random_entries(size: tuple[int, ...], dtype: torch.dtype, gen: torch.Generator) -> torch.Tensor:
    """Random numbers of a cache's dtype."""
    return torch.randn(size, generator=gen).to(dtype)


def layer_cache(
    layout: str, blocks: int, heads: int, size: int, dim: int, dtype: torch.dtype, gen: torch.Generator
):
    """One layer's cache with random contents. nhd and hnd hold K and V side by side, as vLLM does."""
    if layout == "nhd":
        whole = random_entries((blocks, size, heads, 2 * dim), dtype, gen).transpose(1, 2)
        return StridedCache(whole[..., :dim], whole[..., dim:])
    if layout == "hnd":
        whole = random_entries((blocks, heads, size, 2 * dim), dtype, gen)
        return StridedCache(whole[..., :dim], whole[..., dim:])
    if layout == "split":
        whole = random_entries((2, blocks, size, heads, dim), dtype, gen).transpose(2, 3)
        return StridedCache(whole[0], whole[1])
    if layout == "transposed":
        keys = random_entries((blocks, heads, dim, size), dtype, gen).transpose(2, 3)
        return StridedCache(keys, random_entries((blocks, heads, size, dim), dtype, gen))
    maps = torch.randperm(2 * size * dim, generator=gen).reshape(2, size, dim)
    return IndexedCache(random_entries((blocks, heads, 2 * size * dim), dtype, gen), maps[0], maps[1])


@dataclass
class Case:
    """Caches, positions and a batch of planned requests, with what each request held before."""

    shape: ModelShape
    caches: list
    positions: torch.Tensor
    batch: RoundBatch
    plans: list[RoundPlan]
    memory: torch.Tensor
    """float32 [2, *positions.shape]: what terms remember of the entries that are `known`."""

    def on(self, device: str) -> Case:
        """A copy on a device, every cache with the strides that it has here."""
        moved: dict[int, torch.Tensor] = {}

        def there(x: torch.Tensor) -> torch.Tensor:
            base = x if x._base is None else x._base
            if id(base) not in moved:
                moved[id(base)] = base.to(device, copy=True)
            return moved[id(base)].as_strided(x.shape, x.stride(), x.storage_offset())

        caches = [
            StridedCache(there(c.k), there(c.v)) if isinstance(c, StridedCache) else copy.deepcopy(c)
            for c in self.caches
        ]
        batch = replace(
            self.batch,
            block_tables=self.batch.block_tables.to(device, copy=True),
            fields=self.batch.fields.to(device, copy=True),
            recent=None if self.batch.recent is None else self.batch.recent.to(device, copy=True),
        )
        return replace(
            self, caches=caches, positions=there(self.positions), memory=there(self.memory), batch=batch
        )

    def entries(self, request: int, count: int):
        """K, V [layers, heads, count, dim] and positions [layers, heads, count] of a request's first rows."""
        plan, size = self.plans[request], self.positions.shape[-1]
        index = torch.arange(count)
        table = self.batch.block_tables[int(self.batch.fields[request, 0])]
        blocks, offsets = table[index // size].long(), index % size
        k, v = (torch.stack([c.read(w, blocks, offsets) for c in self.caches]) for w in ("k", "v"))
        stored = self.positions[:, :, blocks, offsets].long()
        return k, v, torch.where(index < plan.previous, stored, index + plan.evicted)


def case(
    model: ModelShape,
    requests: list[dict],
    *,
    layout: str = "nhd",
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
    gen: torch.Generator,
) -> Case:
    """A cache with spare blocks in random order. A request is {resident, keep, previous, evicted, prompt_len, pin}."""
    needed = [-(-r["resident"] // block_size) for r in requests]
    total = sum(needed) + 3
    free = torch.randperm(total, generator=gen).int()
    rows = torch.randperm(len(requests) + 2, generator=gen).tolist()[: len(requests)]
    tables = torch.zeros(len(requests) + 2, max(needed) + 2, dtype=torch.int32)
    positions = torch.full((model.layers, model.kv_heads, total, block_size), -7, dtype=torch.int32)
    plans, start = [], 0
    for i, (r, count, row) in enumerate(zip(requests, needed, rows, strict=True)):
        tables[row, :count] = free[start : start + count]
        start += count
        evicted, previous = r.get("evicted", 0), r.get("previous", 0)
        plans.append(
            RoundPlan(
                request_id=f"r{i}",
                computed=r["resident"] + evicted,
                resident=r["resident"],
                previous=previous,
                evicted=evicted,
                keep=r["keep"],
                prompt_len=r.get("prompt_len", 0),
                pin_prompt=r.get("pin", False),
                known=r.get("known", 0),
            )
        )
        index = torch.arange(previous)
        for layer in range(model.layers):
            for head in range(model.kv_heads):
                # What is left of previous + evicted tokens after rounds that chose apart.
                held = torch.randperm(previous + evicted, generator=gen)[:previous].int()
                positions[layer, head, tables[row][index // block_size].long(), index % block_size] = held
    caches = [
        layer_cache(layout, total, model.kv_heads, block_size, model.head_dim, dtype, gen)
        for _ in range(model.layers)
    ]
    memory = torch.rand(2, *positions.shape, generator=gen) * 2 - 1
    return Case(model, caches, positions, RoundBatch.of(plans, tables, rows), plans, memory)
