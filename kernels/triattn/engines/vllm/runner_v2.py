"""V2 model runner (vLLM on GPUs; on a CPU with interpreted Triton).

vLLM source: ``vllm/v1/worker/gpu/model_runner.py``. Full CUDA graphs read attention lengths from an address
that was captured, so lengths minus E live in a buffer of their own that capture and replay both see;
everything else (sampler, penalties, log-probs) goes on reading logical lengths.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from triattn.config import ConfigError
from triattn.engines.vllm.query_ring import queries_there
from triattn.engines.vllm.worker import RankRounds, StagedRound, build_rounds
from triattn.ops.shift import shift_slots_and_lengths
from triattn.plan import RoundPlan, cdiv

GROUP = 0


class RunnerV2:
    """State and wraps of one V2 runner instance."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.device: torch.device = runner.device
        self.rounds: RankRounds = build_rounds(runner, runner.kv_cache_config)
        self.block_size = self.rounds.block_size
        if getattr(runner.block_tables, "blocks_per_kv_block", [1])[GROUP] != 1:
            raise ConfigError(
                "block_size",
                self.block_size,
                "the attention backend splits blocks of this size; set --block-size to the backend's own",
            )
        rows = runner.max_num_reqs
        self.evicted = np.zeros(rows, np.int32)
        """E by state row, on the host."""
        self.evicted_gpu = torch.zeros(rows, dtype=torch.int32, device=self.device)
        self.first = np.zeros(rows, np.int32)
        """First computed position by state row, on the host: where a request's queries in the ring begin."""
        self.kv_seq_lens = torch.zeros_like(runner.input_buffers.seq_lens)
        self._stale = False
        self._real_step = False
        self._install()

    def _install(self) -> None:
        runner, model_state = self.runner, self.runner.model_state
        add_requests, update_requests = runner.add_requests, runner.update_requests
        prepare_attn, prepare_model_attn = runner.prepare_attn, model_state.prepare_attn
        sample_tokens = runner.sample_tokens

        def add(scheduler_output: Any) -> Any:
            result = add_requests(scheduler_output)
            self._reset_rows(scheduler_output)
            return result

        def update(scheduler_output: Any) -> Any:
            self.begin_step(scheduler_output)
            return update_requests(scheduler_output)

        def prepare(input_batch: Any) -> Any:
            block_tables, slot_mappings = prepare_attn(input_batch)
            self.shift(input_batch, slot_mappings)
            return block_tables, slot_mappings

        def prepare_model(input_batch: Any, *args: Any, **kwargs: Any) -> Any:
            return prepare_model_attn(self.physical(input_batch), *args, **kwargs)

        def sample(*args: Any, **kwargs: Any) -> Any:
            output = sample_tokens(*args, **kwargs)
            outbox = self.rounds.outbox
            if outbox is not None and outbox.pending:
                outbox.attach(output)
            return output

        if self.rounds.ring is not None:
            dummy_run = runner._dummy_run

            def dummy(*args: Any, **kwargs: Any) -> Any:
                # Some skip attention's metadata, and with it `physical`.
                self.rounds.ring.nothing()
                return dummy_run(*args, **kwargs)

            runner._dummy_run = dummy
        runner.add_requests, runner.update_requests, runner.prepare_attn = add, update, prepare
        runner.sample_tokens = sample
        model_state.prepare_attn = prepare_model

    def _reset_rows(self, scheduler_output: Any) -> None:
        rows = self.runner.req_states.req_id_to_index
        for new in scheduler_output.scheduled_new_reqs:
            row = rows[new.req_id]
            self.first[row] = new.num_computed_tokens
            if self.evicted[row]:
                self.evicted[row] = 0
                self._stale = True

    def begin_step(self, scheduler_output: Any) -> None:
        """Run the step's rounds; the table rows are cut before vLLM appends this step's blocks."""
        step = getattr(scheduler_output, "triattn", None)
        if step is not None and step.policy is not None:
            self.rounds.use(step.policy)
        if step is not None and step.rounds:
            rows = self.runner.req_states.req_id_to_index
            plans = [plan for plan in step.rounds if plan.request_id in rows]
            self._redirect(plans)
            tables = self.runner.block_tables.block_tables[GROUP].gpu
            staged = [self._stage(plan, rows[plan.request_id]) for plan in plans]
            self.rounds.run(staged, tables, step=step.step, watched=step.watched)
            counts = self.runner.block_tables.num_blocks.np
            for plan in plans:
                row = rows[plan.request_id]
                counts[GROUP, row] = cdiv(plan.keep, self.block_size)
                self.evicted[row] = plan.evicted + plan.resident - plan.keep
            self._stale = True
        if self._stale:
            self._stale = False
            self.evicted_gpu.copy_(self.rounds.stage(self.evicted), non_blocking=True)

    def _stage(self, plan: RoundPlan, row: int) -> StagedRound:
        ring = self.rounds.ring
        if ring is None:
            return StagedRound(plan, row=row)
        count = queries_there(plan.computed, int(self.first[row]), ring.length)
        return StagedRound(plan, row=row, recent=(row, count))

    def _redirect(self, plans: list[RoundPlan]) -> None:
        """Point table entries at private copies. Not a staged write: those have room for one per row."""
        rows = self.runner.req_states.req_id_to_index
        entries = [(rows[plan.request_id], index, to) for plan in plans for index, _, to in plan.copies]
        if not entries:
            return
        where = self.rounds.stage(np.array(entries, np.int64)).to(self.device, non_blocking=True)
        table = self.runner.block_tables.block_tables[GROUP].gpu
        table.index_put_((where[:, 0], where[:, 1]), where[:, 2].to(table.dtype))

    def shift(self, input_batch: Any, slot_mappings: torch.Tensor) -> None:
        """Real steps: slots of the compressed group and attention lengths lose E, in one launch."""
        lengths = self.runner.input_buffers.seq_lens
        if self.rounds.ring is not None:
            self.rounds.ring.place(
                input_batch.positions, input_batch.query_start_loc, input_batch.idx_mapping
            )
        self._real_step = True
        self._shifted = bool(self.evicted[input_batch.idx_mapping_np].any())
        if not self._shifted:
            self.kv_seq_lens.copy_(lengths)
            return
        shift_slots_and_lengths(
            slot_mapping=slot_mappings[GROUP],
            kv_seq_lens=self.kv_seq_lens,
            seq_lens=lengths,
            positions=input_batch.positions,
            query_start_loc=input_batch.query_start_loc,
            idx_mapping=input_batch.idx_mapping,
            evicted=self.evicted_gpu,
            block_table=self.runner.block_tables.block_tables[GROUP].gpu,
            block_size=self.block_size,
        )

    def physical(self, input_batch: Any) -> Any:
        """The batch as attention metadata must see it: lengths without E."""
        lengths = self.runner.input_buffers.seq_lens
        if input_batch.seq_lens.data_ptr() != lengths.data_ptr():
            return input_batch
        real, self._real_step = self._real_step, False
        if not real:
            # Capture and dummy runs fill the logical buffer only.
            self.kv_seq_lens.copy_(lengths)
            if self.rounds.ring is not None:
                self.rounds.ring.nothing()
        batch = copy.copy(input_batch)
        batch.seq_lens = self.kv_seq_lens[: input_batch.seq_lens.shape[0]]
        if real and self._shifted:
            bound = input_batch.seq_lens_cpu_upper_bound
            shift = np.zeros(bound.shape[0], np.int32)
            shift[: input_batch.num_reqs] = self.evicted[input_batch.idx_mapping_np[: input_batch.num_reqs]]
            batch.seq_lens_cpu_upper_bound = bound - torch.from_numpy(shift)
        return batch


def install(runner: Any) -> None:
    """Give a V2 runner its hooks; a second call (the cache was made anew) replaces the cache's view."""
    state = getattr(runner, "triattn", None)
    if state is not None:
        state.rounds = build_rounds(runner, runner.kv_cache_config, state.rounds)
        return
    runner.triattn = RunnerV2(runner)
