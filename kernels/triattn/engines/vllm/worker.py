"""One rank's rounds, whichever runner asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from triattn.config import ConfigError
from triattn.engines import observe
from triattn.engines.policy import PolicyInForce, heads_of, model_shape
from triattn.engines.rounds import PolicyRounds
from triattn.engines.vllm import probe, query_ring
from triattn.engines.vllm.layout import layer_caches, layer_names
from triattn.engines.vllm.plugin import settings_of
from triattn.engines.vllm.step_report import Outbox
from triattn.ops.interface import LayerCache, RoundBatch
from triattn.plan import RoundPlan, cdiv


@dataclass(frozen=True, slots=True)
class StagedRound:
    """A plan with where its table row is: the row's number in a table on the device, or its block ids.

    ``recent``: the request's row of the ring of queries and how many are in it, where there is a ring.
    """

    plan: RoundPlan
    block_ids: Sequence[int] = ()
    row: int = -1
    recent: tuple[int, int] | None = None


class RankRounds(PolicyRounds):
    """The rounds of one rank on vLLM's blocks."""

    def __init__(
        self,
        config: Any,
        caches: list[LayerCache],
        layers: list[int],
        spec: Any,
        blocks: int,
        device: torch.device,
    ) -> None:
        self.block_size: int = spec.block_size
        geometry = probe.model_geometry(config)
        parallel = config.parallel_config
        size, rank = parallel.tensor_parallel_size, parallel.rank % parallel.tensor_parallel_size
        self.ranks = size
        # vLLM reads the output of the first tensor-parallel rank of the last pipeline stage.
        sends = parallel.rank == parallel.world_size - size
        self.outbox = Outbox(device) if sends else None
        kv_heads = heads_of(geometry.kv_heads, size, rank)
        if len(kv_heads) != spec.num_kv_heads:
            raise ConfigError(
                "num_kv_heads", spec.num_kv_heads, f"expected {len(kv_heads)} on rank {rank} of {size}"
            )
        query_heads = heads_of(geometry.query_heads, size, rank)
        shape = model_shape(config.model_config.hf_text_config, geometry, layers, kv_heads, query_heads)
        positions = torch.zeros(
            (len(layers), len(kv_heads), blocks, self.block_size), dtype=torch.int32, device=device
        )
        super().__init__(caches, positions, shape, geometry, rank)

    def stage(self, array: np.ndarray) -> torch.Tensor:
        """A host tensor with the array's values that a non-blocking copy may read after this returns."""
        tensor = torch.from_numpy(array.copy())
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def run(
        self,
        staged: Sequence[StagedRound],
        tables: torch.Tensor | None = None,
        *,
        step: int = 0,
        watched: str | None = None,
    ) -> None:
        """Copy shared blocks, then score, select and compact every request, on the current stream.

        ``tables`` is int32 [rows, blocks] on the device; without it the block ids of each round are staged.
        ``watched``: the request whose kept tokens are to be shown.
        """
        if not staged:
            return
        if self.outbox is not None:
            self.outbox.clock.start()
        plans = [item.plan for item in staged]
        if tables is None:
            table = np.zeros((len(staged), max(len(item.block_ids) for item in staged)), np.int32)
            for index, item in enumerate(staged):
                table[index, : len(item.block_ids)] = item.block_ids
            tables = self.stage(table).to(self.device, non_blocking=True)
            rows: Sequence[int] = range(len(staged))
        else:
            rows = [item.row for item in staged]
        self._copy_blocks(plans)
        for number in sorted({plan.policy for plan in plans}):
            chosen = [i for i, plan in enumerate(plans) if plan.policy == number]
            recent = None if self.ring is None else [staged[i].recent for i in chosen]
            batch = RoundBatch.of([plans[i] for i in chosen], tables, [rows[i] for i in chosen], recent)
            self.of(number).run(batch)
        if self.outbox is not None:
            self.outbox.clock.stop()
        for plan, row in zip(plans, rows, strict=True):
            if plan.request_id == watched:
                self._show(plan, step, tables[row])
            if observe.observers:
                self._observe(plan, tables[row])

    def _copy_blocks(self, plans: Sequence[RoundPlan]) -> None:
        pairs = [(source, to) for plan in plans for _, source, to in plan.copies]
        if pairs:
            staged = self.stage(np.array(pairs, np.int32)).to(self.device, non_blocking=True)
            self.of(plans[0].policy).copy_blocks(staged)

    def _show(self, plan: RoundPlan, step: int, table: torch.Tensor) -> None:
        """Count what a round kept. Every tensor-parallel rank takes part, in the same step."""
        counts = self.histogram(plan, table)
        if self.outbox is not None:
            self.outbox.show(plan, step, counts)

    def _gathered(self, counts: torch.Tensor) -> torch.Tensor:
        if self.ranks == 1:
            return counts
        from vllm.distributed import get_tp_group

        return get_tp_group().all_gather(counts, dim=1)

    def _observe(self, plan: RoundPlan, table: torch.Tensor) -> None:
        blocks = table[: cdiv(plan.keep, self.block_size)].long()
        self.observe(plan, self.positions[:, :, blocks].flatten(2)[:, :, : plan.keep].long())


def build_rounds(runner: Any, kv_cache_config: Any, before: RankRounds | None = None) -> RankRounds:
    """Probe a runner's caches after they were made; ``before``: what was built for the caches they replace.

    Raises:
        ConfigError: something is not supported.
    """
    probe.check_config(runner.vllm_config)
    group = kv_cache_config.kv_cache_groups[probe.check_groups(kv_cache_config)]
    layers, caches = layer_caches(runner, group)
    rounds = RankRounds(
        runner.vllm_config, caches, layers, group.kv_cache_spec, kv_cache_config.num_blocks, runner.device
    )
    length = settings_of(runner.vllm_config).queries
    if before is not None:
        # The layers write into it already.
        rounds.ring = before.ring
    elif length:
        rounds.ring = query_ring.attach(runner, layer_names(group), rounds.shape, length)
    if before is not None and before.policy is not None:
        rounds.use(before.policy, warm_up=True)
    return rounds


def prepare(worker: Any, policy: PolicyInForce) -> None:
    """Worker method ``triattn_prepare``: put the start-up policy in force and compile what it needs."""
    state = getattr(worker.model_runner, "triattn", None)
    if state is None:
        raise ConfigError(
            "model_runner", type(worker.model_runner).__name__, "triattn is not installed in this worker"
        )
    state.rounds.use(policy, warm_up=True)
