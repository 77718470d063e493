"""One rank's rounds on SGLang's pool: caches, positions, and the policies in force."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triattn.engines import observe
from triattn.engines.clock import RoundClock
from triattn.engines.policy import PolicyInForce, heads_of, model_shape
from triattn.engines.rounds import PolicyRounds
from triattn.engines.sglang import probe
from triattn.engines.sglang.caches import layer_caches
from triattn.errors import ConfigError
from triattn.ops.interface import RoundBatch
from triattn.plan import RoundPlan

KEEP_ALIVE = 3
"""Batches whose tensors are kept: they were allocated on one stream and are read on another."""


@dataclass(frozen=True, slots=True)
class SlotCopies:
    """Slots of one request that get private copies before its round: int64 [n] each, on the device."""

    source: Tensor
    destination: Tensor


class RankRounds(PolicyRounds):
    """The rounds of one rank on SGLang's slots: a block is one token."""

    def __init__(self, scheduler: Any) -> None:
        config, allocator = scheduler.model_config, scheduler.token_to_kv_pool_allocator
        runner = scheduler.tp_worker.model_runner
        self.table: Tensor = scheduler.req_to_token_pool.req_to_token
        geometry = probe.model_geometry(config)
        pool = allocator.get_kvcache()
        slots = allocator.size + allocator.page_size
        caches = layer_caches(pool, runner.model, slots)
        if len(caches) != geometry.layers:
            raise ConfigError(
                "layers", len(caches), f"the model has {geometry.layers}; each needs a cache of its own"
            )
        size, rank = scheduler.ps.attn_tp_size, scheduler.ps.attn_tp_rank
        kv_heads = heads_of(geometry.kv_heads, size, rank)
        if len(kv_heads) != pool.head_num:
            raise ConfigError(
                "num_kv_heads", pool.head_num, f"expected {len(kv_heads)} on rank {rank} of {size}"
            )
        query_heads = heads_of(geometry.query_heads, size, rank)
        shape = model_shape(config.hf_text_config, geometry, range(len(caches)), kv_heads, query_heads)
        positions = torch.zeros(
            (len(caches), len(kv_heads), slots, 1), dtype=torch.int32, device=self.table.device
        )
        super().__init__(caches, positions, shape, geometry, rank)
        self.clock = RoundClock(self.device)
        self._group = scheduler.tp_group if size > 1 else None
        self._alive: deque[tuple[Any, ...]] = deque(maxlen=KEEP_ALIVE)

    def use(self, policy: PolicyInForce, *, warm_up: bool = False) -> None:
        """See PolicyRounds. Nothing that rounds on their way still read is given back; after a warm-up everything is
        on the device, whichever thread and stream made it."""
        before = self._prepared
        super().use(policy, warm_up=warm_up)
        self._alive.append((before,))
        if warm_up and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def snapshot(self, rows: Sequence[int], length: int) -> Tensor:
        """A copy of the first ``length`` slots of these rows of the table, int32 [rows, length], on the current
        stream. The scheduler writes to the table again before the rounds that read it have run."""
        return self.table[:, :length].index_select(0, self._staged(list(rows)))

    def _staged(self, values: list[int]) -> Tensor:
        host = torch.tensor(values, dtype=torch.int64)
        if self.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)

    def run(
        self,
        plans: Sequence[RoundPlan],
        policies: Sequence[int],
        tables: Tensor,
        copies: Sequence[SlotCopies],
    ) -> None:
        """Copy shared slots, then score, select and compact every request, on the current stream.

        ``policies``: number of each plan's document; ``tables``: row i is of plan i.
        """
        alive: list[Any] = [tables, copies]
        self.clock.start()
        if copies:
            pairs = torch.stack(
                (torch.cat([c.source for c in copies]), torch.cat([c.destination for c in copies])), dim=1
            ).int()
            alive.append(pairs)
            self.of(policies[0]).copy_blocks(pairs)
        for number in sorted(set(policies)):
            chosen = [i for i, policy in enumerate(policies) if policy == number]
            batch = RoundBatch.of([plans[i] for i in chosen], tables, chosen)
            alive.append(batch)
            self.of(number).run(batch)
        self.clock.stop()
        self._alive.append(tuple(alive))
        if observe.observers:
            for index, plan in enumerate(plans):
                self._observe(plan, tables[index])

    def _gathered(self, counts: Tensor) -> Tensor:
        return counts if self._group is None else self._group.all_gather(counts, dim=1)

    def _observe(self, plan: RoundPlan, table: Tensor) -> None:
        self.observe(plan, self.positions[:, :, table[: plan.keep].long(), 0].long())
