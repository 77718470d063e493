"""One rank's rounds, whichever runner asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from triattn.config import ConfigError
from triattn.engines import kept, observe
from triattn.engines.policy import PolicyInForce, heads_of, load_statistics, model_shape, scoring_key
from triattn.engines.vllm import probe
from triattn.engines.vllm.layout import layer_caches
from triattn.engines.vllm.step_report import Outbox
from triattn.ops.interface import LayerCache, RoundBatch, Rounds
from triattn.plan import RoundPlan, cdiv
from triattn.policies import Policy


@dataclass(frozen=True, slots=True)
class StagedRound:
    """A plan with where its table row is: the row's number in a table on the device, or its block ids."""

    plan: RoundPlan
    block_ids: Sequence[int] = ()
    row: int = -1


class RankRounds:
    """Caches, positions and the policy in force of one rank.

    ``positions`` is int32 [layers, kv_heads, blocks, block_size]: the logical position of each compacted entry.
    It lies by physical slot, so it needs no care when requests come, go or are preempted.
    """

    def __init__(
        self,
        config: Any,
        caches: list[LayerCache],
        layers: list[int],
        spec: Any,
        blocks: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.caches = caches
        self.block_size: int = spec.block_size
        self.device = device
        self.geometry = probe.model_geometry(config)
        parallel = config.parallel_config
        size, rank = parallel.tensor_parallel_size, parallel.rank % parallel.tensor_parallel_size
        self.rank = rank
        self.ranks = size
        # vLLM reads the output of the first tensor-parallel rank of the last pipeline stage.
        sends = parallel.rank == parallel.world_size - size
        self.outbox = Outbox(device) if sends else None
        kv_heads = heads_of(self.geometry.kv_heads, size, rank)
        if len(kv_heads) != spec.num_kv_heads:
            raise ConfigError(
                "num_kv_heads", spec.num_kv_heads, f"expected {len(kv_heads)} on rank {rank} of {size}"
            )
        self.query_heads = heads_of(self.geometry.query_heads, size, rank)
        self.shape = model_shape(
            config.model_config.hf_text_config, self.geometry, layers, kv_heads, self.query_heads
        )
        self.positions = torch.zeros(
            (len(layers), len(kv_heads), blocks, self.block_size), dtype=torch.int32, device=device
        )
        self.policy: PolicyInForce | None = None
        self._rounds: list[Rounds | None] = []
        """By the number of the document that they carry out."""
        self._prepared: dict[Any, Rounds] = {}
        """By what they were made from."""
        self._scratch: Any = None

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
        self.policy, self._prepared = policy, prepared
        self._rounds = [None if key is None else prepared[key] for key in keys]

    def _make(self, policy: Policy, path: str | None) -> Rounds:
        statistics = None
        if path is not None:
            statistics = load_statistics(path, self.geometry)
            statistics = statistics.part(self.shape.layer_ids, _as_slice(self.query_heads))
        if not probe.uses_kernels(self.device.type):
            from triattn.ops.torch_rounds import TorchRounds

            return TorchRounds(self.caches, self.positions, self.shape, policy, statistics)
        from triattn.ops.triton_rounds import TritonRounds

        rounds = TritonRounds(self.caches, self.positions, self.shape, policy, statistics)
        # Rounds of several policies follow one another on a stream: one scratch memory does for all.
        self._scratch = rounds.workspace = self._scratch or rounds.workspace
        return rounds

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
            rounds = self._rounds[number]
            assert rounds is not None, "the scheduler plans no round of a policy that cannot compress"
            chosen = [i for i, plan in enumerate(plans) if plan.policy == number]
            rounds.run(RoundBatch.of([plans[i] for i in chosen], tables, [rows[i] for i in chosen]))
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
            rounds = self._rounds[plans[0].policy]
            assert rounds is not None, "as above"
            rounds.copy_blocks(self.stage(np.array(pairs, np.int32)).to(self.device, non_blocking=True))

    def _show(self, plan: RoundPlan, step: int, table: torch.Tensor) -> None:
        """Count what a round kept. Every tensor-parallel rank takes part, in the same step."""
        layers, total = len(self.caches), self.geometry.kv_heads
        bins = kept.bins_of(layers, total, plan.computed)
        counts = kept.histogram(self.positions, table, plan.keep, plan.computed, bins)
        if self.ranks > 1:
            from vllm.distributed import get_tp_group

            counts = get_tp_group().all_gather(counts, dim=1)
            # Fewer heads than ranks: each head is on several of them.
            counts = counts[:, :: max(1, counts.shape[1] // total)]
        if self.outbox is not None:
            self.outbox.show(plan, step, counts)

    def _observe(self, plan: RoundPlan, table: torch.Tensor) -> None:
        blocks = table[: cdiv(plan.keep, self.block_size)].long()
        kept = self.positions[:, :, blocks].flatten(2)[:, :, : plan.keep].long()
        observe.notify(
            observe.RoundRecord(
                request_id=plan.request_id,
                computed=plan.computed,
                evicted_total=plan.evicted + plan.resident - plan.keep,
                kept=kept.cpu(),
                rank=self.rank,
            )
        )


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


def _as_slice(indices: Sequence[int]) -> slice:
    return slice(indices[0], indices[-1] + 1)
