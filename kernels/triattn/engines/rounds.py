"""What one rank of any engine has prepared for its rounds: one `Rounds` for each policy in force."""

from __future__ import annotations

import os
from typing import Any

import torch

from triattn import wire
from triattn.engines import kept, observe
from triattn.engines.policy import PolicyInForce, load_statistics, scoring_key
from triattn.errors import ConfigError
from triattn.ops.interface import LayerCache, Rounds, planes
from triattn.ops.queries import QueryRing
from triattn.plan import RoundPlan
from triattn.policies import ModelShape, Policy


def uses_kernels(device_type: str) -> bool:
    """Whether rounds run as Triton kernels. Interpreted on a CPU they are for tests: correct, and thousands of
    times slower than torch."""
    return device_type != "cpu" or os.environ.get("TRIATTN_ROUNDS") == "triton"


class PolicyRounds:
    """Caches, positions and the policies in force of one rank.

    Attributes:
        positions: int32 [layers, kv_heads, blocks, block_size], the logical position of each compacted entry. It
            lies by physical slot, so it needs no care when requests come, go or are preempted.
        rank: tensor-parallel rank.
        ring: the last queries of each request, where policies may observe attention.
    """

    def __init__(
        self,
        caches: list[LayerCache],
        positions: torch.Tensor,
        shape: ModelShape,
        geometry: wire.ModelGeometry,
        rank: int,
    ) -> None:
        self.caches = caches
        self.positions = positions
        self.device = positions.device
        self.shape = shape
        self.geometry = geometry
        self.rank = rank
        self.ring: QueryRing | None = None
        self.policy: PolicyInForce | None = None
        self._rounds: list[Rounds | None] = []
        """By the number of the document that they carry out."""
        self._prepared: dict[Any, Rounds] = {}
        """By what they were made from."""
        self._scratch: Any = None
        self._memory = planes(positions, 0)
        """What terms remember of entries; the policies in force share it, since each request has but one."""

    def use(self, policy: PolicyInForce, *, warm_up: bool = False) -> None:
        """Put a policy in force on this rank. What differs from the one before in budgets alone is kept as it is.

        Raises:
            ConfigError: its statistics cannot be used, or it has no kernel for this device.
        """
        keys = [scoring_key(policy, number) for number in range(len(policy.documents))]
        prepared: dict[Any, Rounds] = {}
        fresh: list[Rounds] = []
        for key in keys:
            if key is None or key in prepared:
                continue
            rounds = self._prepared.get(key)
            if rounds is None:
                rounds = self._make(key[0], policy.statistics if key[1] else None)
                fresh.append(rounds)
            prepared[key] = rounds
        self.policy, self._prepared = policy, prepared
        self._share_memory()
        for rounds in fresh if warm_up else ():
            rounds.warm_up()
        self._rounds = [None if key is None else prepared[key] for key in keys]

    def _share_memory(self) -> None:
        """As many planes as a policy in force needs. After a change of policy no request counts on what they hold."""
        needed = max((rounds.planes for rounds in self._prepared.values()), default=0)
        if needed != len(self._memory):
            self._memory = self._planes(needed)
        for rounds in self._prepared.values():
            rounds.remember_in(self._memory)

    def _planes(self, count: int) -> torch.Tensor:
        try:
            return planes(self.positions, count)
        except torch.OutOfMemoryError as error:
            size = 4 * count * self.positions.numel() >> 20
            raise ConfigError(
                "policy",
                self.policy.document.name if self.policy else "",
                f"what its terms remember takes {size} MiB beside the KV cache, which are not free; start the engine "
                "with a smaller share of the GPU's memory for the cache",
            ) from error

    def of(self, number: int) -> Rounds:
        """The rounds of document ``number`` of the policy in force."""
        rounds = self._rounds[number]
        assert rounds is not None, "no round is planned of a policy that cannot compress"
        return rounds

    def _make(self, policy: Policy, path: str | None) -> Rounds:
        statistics = None
        if path is not None:
            heads = self.shape.query_head_ids
            statistics = load_statistics(path, self.geometry)
            statistics = statistics.part(self.shape.layer_ids, slice(heads[0], heads[-1] + 1))
        if not uses_kernels(self.device.type):
            from triattn.ops.torch_rounds import TorchRounds

            return TorchRounds(
                self.caches, self.positions, self.shape, policy, statistics, self._memory, self.ring
            )
        from triattn.ops.triton_rounds import TritonRounds

        rounds = TritonRounds(
            self.caches,
            self.positions,
            self.shape,
            policy,
            statistics,
            memory=self._memory,
            ring=self.ring,
        )
        # Rounds of several policies follow one another on a stream: one scratch memory does for all.
        self._scratch = rounds.workspace = self._scratch or rounds.workspace
        return rounds

    def histogram(self, plan: RoundPlan, table: torch.Tensor) -> torch.Tensor:
        """What a round kept, int32 [layers, kv_heads of the model, bins] on the device, on the current stream.
        Every tensor-parallel rank takes part, in the same step."""
        layers, total = len(self.caches), self.geometry.kv_heads
        bins = kept.bins_of(layers, total, plan.computed)
        counts = kept.histogram(self.positions, table, plan.keep, plan.computed, bins)
        counts = self._gathered(counts)
        # Fewer heads than ranks: each head is on several of them.
        return counts[:, :: max(1, counts.shape[1] // total)]

    def _gathered(self, counts: torch.Tensor) -> torch.Tensor:
        """[layers, kv_heads of this rank, bins] of all tensor-parallel ranks, joined along the heads. An engine
        that runs on several ranks knows how."""
        return counts

    def observe(self, plan: RoundPlan, positions: torch.Tensor) -> None:
        """Tell the observers what a round kept: int64 [layers, kv_heads, keep], logical positions."""
        observe.notify(
            observe.RoundRecord(
                request_id=plan.request_id,
                computed=plan.computed,
                evicted_total=plan.evicted + plan.resident - plan.keep,
                kept=positions.cpu(),
                rank=self.rank,
            )
        )
