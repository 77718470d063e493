"""One rank's rounds on SGLang's pool: caches, positions, and the policies in force."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from triattn.engines import kept, observe
from triattn.engines.clock import RoundClock
from triattn.engines.policy import PolicyInForce, heads_of, load_statistics, model_shape, scoring_key
from triattn.engines.sglang import probe
from triattn.engines.sglang.caches import layer_caches
from triattn.errors import ConfigError
from triattn.ops.interface import RoundBatch, Rounds
from triattn.plan import RoundPlan
from triattn.policies import Policy

KEEP_ALIVE = 3
"""Batches whose tensors are kept: they were allocated on one stream and are read on another."""


@dataclass(frozen=True, slots=True)
class SlotCopies:
    """Slots of one request that get private copies before its round: int64 [n] each, on the device."""

    source: Tensor
    destination: Tensor


class RankRounds:
    """Caches, positions and the policies in force of one rank.

    ``positions`` is int32 [layers, kv_heads, slots, 1]: the logical position of each compacted entry. It lies by
    physical slot, so it needs no care when requests come, go or are retracted.
    """

    def __init__(self, scheduler: Any) -> None:
        config, allocator = scheduler.model_config, scheduler.token_to_kv_pool_allocator
        runner = scheduler.tp_worker.model_runner
        self.table: Tensor = scheduler.req_to_token_pool.req_to_token
        self.device = self.table.device
        self.hf_config = config.hf_text_config
        self.geometry = probe.model_geometry(config)
        pool = allocator.get_kvcache()
        slots = allocator.size + allocator.page_size
        self.caches = layer_caches(pool, runner.model, slots)
        if len(self.caches) != self.geometry.layers:
            raise ConfigError(
                "layers",
                len(self.caches),
                f"the model has {self.geometry.layers}; each needs a cache of its own",
            )
        size, self.rank = scheduler.ps.attn_tp_size, scheduler.ps.attn_tp_rank
        kv_heads = heads_of(self.geometry.kv_heads, size, self.rank)
        if len(kv_heads) != pool.head_num:
            raise ConfigError(
                "num_kv_heads", pool.head_num, f"expected {len(kv_heads)} on rank {self.rank} of {size}"
            )
        self.query_heads = heads_of(self.geometry.query_heads, size, self.rank)
        layers = range(len(self.caches))
        self.shape = model_shape(self.hf_config, self.geometry, layers, kv_heads, self.query_heads)
        self.positions = torch.zeros(
            (len(self.caches), len(kv_heads), slots, 1), dtype=torch.int32, device=self.device
        )
        self._rounds: list[Rounds | None] = []
        """By the number of the document that they carry out."""
        self._prepared: dict[Any, Rounds] = {}
        """By what they were made from."""
        self.clock = RoundClock(self.device)
        self._group = scheduler.tp_group if size > 1 else None
        self._alive: deque[tuple[Any, ...]] = deque(maxlen=KEEP_ALIVE)

    def use(self, policy: PolicyInForce, *, warm_up: bool = False) -> None:
        """Put a policy in force on this rank. What differs from the one before in budgets alone is kept as it is.

        Raises:
            ConfigError: its statistics cannot be used, or it has no kernel for this device.
        """
        keys = [scoring_key(policy, number) for number in range(len(policy.documents))]
        prepared: dict[Any, Rounds] = {}
        for key in keys:
            if key is None or key in prepared:
                continue
            rounds = self._prepared.get(key)
            if rounds is None:
                rounds = self._make(key[0], policy.statistics if key[1] else None)
                if warm_up:
                    rounds.warm_up()
            prepared[key] = rounds
        self._prepared = prepared
        self._rounds = [None if key is None else prepared[key] for key in keys]

    def _make(self, policy: Policy, path: str | None) -> Rounds:
        statistics = None
        if path is not None:
            heads = slice(self.query_heads[0], self.query_heads[-1] + 1)
            statistics = load_statistics(path, self.geometry).part(self.shape.layer_ids, heads)
        # Interpreted kernels on a CPU are for tests: correct, and thousands of times slower than torch.
        if self.device.type == "cpu" and os.environ.get("TRIATTN_ROUNDS") != "triton":
            from triattn.ops.torch_rounds import TorchRounds

            return TorchRounds(self.caches, self.positions, self.shape, policy, statistics)
        from triattn.ops.triton_rounds import TritonRounds

        return TritonRounds(self.caches, self.positions, self.shape, policy, statistics)

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
            self._of(policies[0]).copy_blocks(pairs)
        for number in sorted(set(policies)):
            chosen = [i for i, policy in enumerate(policies) if policy == number]
            batch = RoundBatch.of([plans[i] for i in chosen], tables, chosen)
            alive.append(batch)
            self._of(number).run(batch)
        self.clock.stop()
        self._alive.append(tuple(alive))
        if observe.observers:
            for index, plan in enumerate(plans):
                self._observe(plan, tables[index])

    def histogram(self, plan: RoundPlan, table: Tensor) -> Tensor:
        """What a round kept, int32 [layers, kv_heads of the model, bins] on the device, on the current stream.
        Every tensor-parallel rank takes part, in the same step."""
        layers, total = len(self.caches), self.geometry.kv_heads
        bins = kept.bins_of(layers, total, plan.computed)
        counts = kept.histogram(self.positions, table, plan.keep, plan.computed, bins)
        if self._group is None:
            return counts
        counts = self._group.all_gather(counts, dim=1)
        # Fewer heads than ranks: each head is on several of them.
        return counts[:, :: max(1, counts.shape[1] // total)]

    def _of(self, number: int) -> Rounds:
        rounds = self._rounds[number]
        assert rounds is not None, "no round is planned of a policy that cannot compress"
        return rounds

    def _observe(self, plan: RoundPlan, table: Tensor) -> None:
        positions = self.positions[:, :, table[: plan.keep].long(), 0].long()
        observe.notify(
            observe.RoundRecord(
                request_id=plan.request_id,
                computed=plan.computed,
                evicted_total=plan.evicted + plan.resident - plan.keep,
                kept=positions.cpu(),
                rank=self.rank,
            )
        )
