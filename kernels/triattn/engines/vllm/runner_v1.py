"""V1 model runner (vLLM on CPU, and on a GPU where vLLM still chooses it).

vLLM source: ``vllm/v1/worker/gpu_model_runner.py``. Compaction comes first in a step, before states are
updated: blocks freed by the scheduler may be handed out, and zeroed, in this very step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from triattn.config import ConfigError
from triattn.engines.vllm import probe
from triattn.engines.vllm.query_ring import RingRows, places
from triattn.engines.vllm.worker import RankRounds, StagedRound, build_rounds
from triattn.plan import RoundPlan, cdiv

GROUP = 0


class RunnerV1:
    """State and wraps of one V1 runner instance."""

    def __init__(self, runner: Any) -> None:
        probe.check_runner_v1(runner)
        self.runner = runner
        self.rounds: RankRounds = build_rounds(runner, runner.kv_cache_config)
        self.block_size = self.rounds.block_size
        self.evicted: dict[str, int] = {}
        table = runner.input_batch.block_table[GROUP]
        if table.block_size != self.block_size:
            raise ConfigError(
                "block_size",
                self.block_size,
                f"the attention backend works in blocks of {table.block_size} tokens; set --block-size to that",
            )
        self.ring_rows = RingRows(runner.max_num_reqs)
        self._placed = 0
        """Tokens of the last step whose places in the ring are set."""
        self._install()
        if self.rounds.ring is not None:
            self._install_ring()

    def _install(self) -> None:
        runner = self.runner
        execute_model, prepare_inputs = runner.execute_model, runner._prepare_inputs
        sample_tokens = runner.sample_tokens

        def execute(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            self.begin_step(scheduler_output)
            return execute_model(scheduler_output, *args, **kwargs)

        def prepare(*args: Any, **kwargs: Any) -> Any:
            return self.prepare_inputs(prepare_inputs, *args, **kwargs)

        def sample(*args: Any, **kwargs: Any) -> Any:
            output = sample_tokens(*args, **kwargs)
            outbox = self.rounds.outbox
            if outbox is not None and outbox.pending:
                outbox.attach(output)
            return output

        runner.execute_model, runner._prepare_inputs = execute, prepare
        runner.sample_tokens = sample

    def _install_ring(self) -> None:
        """Keep queries of real steps, and none of dummy ones."""
        runner = self.runner
        prepare_inputs, dummy_run = runner._prepare_inputs, runner._dummy_run

        def prepare(
            scheduler_output: Any, num_scheduled_tokens: np.ndarray, *args: Any, **kwargs: Any
        ) -> Any:
            result = prepare_inputs(scheduler_output, num_scheduled_tokens, *args, **kwargs)
            self._place_queries(num_scheduled_tokens)
            return result

        def dummy(*args: Any, **kwargs: Any) -> Any:
            self.rounds.ring.nothing()
            self._placed = 0
            return dummy_run(*args, **kwargs)

        runner._prepare_inputs, runner._dummy_run = prepare, dummy

    def _place_queries(self, scheduled: np.ndarray) -> None:
        ring, batch = self.rounds.ring, self.runner.input_batch
        requests = batch.num_reqs
        rows = np.fromiter((self.ring_rows.row(r) for r in batch.req_ids[:requests]), np.int64, requests)
        computed = batch.num_computed_tokens_cpu[:requests].astype(np.int64)
        found = places(rows, computed, np.asarray(scheduled[:requests], np.int64), ring.length)
        # Tokens of a graph beyond those of the step are padding.
        slots = np.full(max(len(found), self._placed), -1, np.int32)
        slots[: len(found)] = found
        ring.slots[: len(slots)].copy_(self.rounds.stage(slots), non_blocking=True)
        self._placed = len(found)

    def _follow_rows(self, scheduler_output: Any) -> None:
        """Rows of the ring come and go with blocks."""
        rows, cached = self.ring_rows, scheduler_output.scheduled_cached_reqs
        for request_id in (*scheduler_output.finished_req_ids, *(scheduler_output.preempted_req_ids or ())):
            rows.end(request_id)
        for new in scheduler_output.scheduled_new_reqs:
            rows.begin(new.req_id, new.num_computed_tokens)
        for request_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if request_id in cached.resumed_req_ids:
                rows.begin(request_id, computed)

    def begin_step(self, scheduler_output: Any) -> None:
        """Forget requests that lost their blocks; run the step's rounds."""
        if self.rounds.ring is not None:
            self._follow_rows(scheduler_output)
        evicted = self.evicted
        for request_id in scheduler_output.finished_req_ids:
            evicted.pop(request_id, None)
        for new in scheduler_output.scheduled_new_reqs:
            evicted.pop(new.req_id, None)
        for request_id in scheduler_output.scheduled_cached_reqs.resumed_req_ids:
            evicted.pop(request_id, None)
        step = getattr(scheduler_output, "triattn", None)
        if step is None:
            return
        if step.policy is not None:
            self.rounds.use(step.policy)
        if step.rounds:
            staged = [self._stage(plan) for plan in step.rounds]
            self.rounds.run(staged, step=step.step, watched=step.watched)
            for plan in step.rounds:
                self._truncate(plan)

    def _stage(self, plan: RoundPlan) -> StagedRound:
        block_ids = self.runner.requests[plan.request_id].block_ids[GROUP]
        for index, _, destination in plan.copies:
            block_ids[index] = destination
        ring = self.rounds.ring
        recent = None if ring is None else self.ring_rows.recent(plan.request_id, plan.computed, ring.length)
        return StagedRound(plan, block_ids[: cdiv(plan.resident, self.block_size)], recent=recent)

    def _truncate(self, plan: RoundPlan) -> None:
        batch = self.runner.input_batch
        after = cdiv(plan.keep, self.block_size)
        del self.runner.requests[plan.request_id].block_ids[GROUP][after:]
        index = batch.req_id_to_index.get(plan.request_id)
        if index is not None:
            table = batch.block_table[GROUP]
            table.num_blocks_per_row[index] = after
            for row, _, destination in plan.copies:
                table.block_table.np[index, row] = destination
        self.evicted[plan.request_id] = plan.evicted + plan.resident - plan.keep

    def prepare_inputs(
        self,
        original: Any,
        scheduler_output: Any,
        num_scheduled_tokens: np.ndarray,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Slots and attention lengths lose E; positions, masks and sampling stay logical."""
        runner, batch = self.runner, self.runner.input_batch
        if not self.evicted:
            return original(scheduler_output, num_scheduled_tokens, *args, **kwargs)
        requests = batch.num_reqs
        shift = np.fromiter((self.evicted.get(r, 0) for r in batch.req_ids[:requests]), np.int32, requests)
        if not shift.any():
            return original(scheduler_output, num_scheduled_tokens, *args, **kwargs)
        tables = batch.block_table
        compute = tables.compute_slot_mapping
        by_token = self.rounds.stage(np.repeat(shift, num_scheduled_tokens).astype(np.int64))
        by_token = by_token.to(runner.device, non_blocking=True)

        def compute_shifted(num_reqs: int, query_start_loc: torch.Tensor, positions: torch.Tensor) -> Any:
            return compute(num_reqs, query_start_loc, positions - by_token[: positions.shape[0]])

        tables.compute_slot_mapping = compute_shifted
        try:
            result = original(scheduler_output, num_scheduled_tokens, *args, **kwargs)
        finally:
            del tables.compute_slot_mapping
        by_request = self.rounds.stage(shift)
        runner.optimistic_seq_lens_cpu[:requests] -= by_request
        runner.seq_lens[:requests] -= by_request.to(runner.device, non_blocking=True)
        return result


def install(runner: Any) -> None:
    """Give a V1 runner its hooks; a second call (the cache was made anew) replaces the state."""
    state = getattr(runner, "triattn", None)
    if state is not None:
        state.rounds = build_rounds(runner, runner.kv_cache_config, state.rounds)
        return
    runner.triattn = RunnerV1(runner)
