"""One scheduler process of SGLang: plans rounds before a decode step or between chunks, runs them, keeps the books.

Every tensor-parallel rank has a scheduler of its own that decides the same from the same numbers; only the first
talks to the control plane. SGLang source: ``sglang/srt/managers/scheduler.py``.

With overlap scheduling the forward pass of the step before may still run. Rounds are launched on its stream, so
they follow it, and work on a copy of the table; nothing waits on the host.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from triattn.config import Settings
from triattn.engines.policy import PolicyInForce, check_policy, model_shape
from triattn.engines.sglang import probe
from triattn.engines.sglang.admission import SLACK, Bound, LengthLimits
from triattn.engines.sglang.chunks import Chunks, shift_positions, takes_rounds
from triattn.engines.sglang.reports import Reports, Watched
from triattn.engines.sglang.requests import ATTRIBUTE, BEYOND, RequestState, own_budget, state_of, tags_of
from triattn.engines.sglang.rounds import RankRounds
from triattn.engines.sglang.slots import Slots, Truncated
from triattn.errors import ConfigError
from triattn.plan import RoundPlan
from triattn.rules import Rules, Verdict


@dataclass(frozen=True, slots=True)
class Planned:
    """A round of one request, whose slots are already counted as after it."""

    plan: RoundPlan
    policy: int
    row: int
    truncated: Truncated


class SchedulerHooks:
    """Everything triattn does in one scheduler."""

    def __init__(self, scheduler: Any, settings: Settings) -> None:
        probe.check_applied()
        probe.check_scheduler(scheduler)
        self.scheduler = scheduler
        self.slots = Slots(scheduler)
        self.rounds = RankRounds(scheduler)
        self.geometry = self.rounds.geometry
        self.shape = model_shape(scheduler.model_config.hf_text_config, self.geometry)
        self.tp_size: int = scheduler.ps.attn_tp_size
        self.first_rank: bool = scheduler.ps.tp_rank == 0
        self._generation = 0
        self.compressed = 0
        """Requests with E > 0 that hold KV."""
        self._positions_due = False
        self.watched: str | None = None
        """The request whose rounds are to be shown."""
        self.reports = Reports(self, settings)
        self._use(
            self._agreed(self.reports.first_policy(settings) if self.first_rank else None), warm_up=True
        )
        self._install()
        self.chunks = Chunks(self)
        LengthLimits(scheduler, self)

    # Policy ---------------------------------------------------------------------------------------

    def _agreed(self, policy: PolicyInForce | None) -> PolicyInForce:
        """The first rank's policy, on every rank."""
        if self.tp_size == 1:
            assert policy is not None
            return policy
        from sglang.srt.utils import broadcast_pyobj

        group = self.scheduler.tp_group
        data = [] if policy is None else [policy]
        return broadcast_pyobj(data, group.rank, self.scheduler.tp_cpu_group, src=group.ranks[0])[0]

    def check(self, policy: PolicyInForce) -> Rules:
        """The policy's integers, if it can work here; touches nothing (the link's thread calls it too).

        Raises:
            ConfigError: it cannot.
        """
        rules = Rules.of(policy, self.slots.page)
        check_policy(policy, rules, self.geometry, self.shape, self.tp_size)
        room = self.slots.total * self.slots.page
        for case in rules.cases():
            trigger = rules.budgetings[case.policy].trigger(0, case.budget)
            if trigger > room:
                remedy = f"with the interval it exceeds the cache of {room} tokens; use a smaller budget"
                raise ConfigError(case.field, case.budget, remedy)
        return rules

    def _use(self, policy: PolicyInForce, *, warm_up: bool = False) -> None:
        """Put a policy in force from the next step on."""
        self.rules = self.check(policy)
        self.rounds.use(policy, warm_up=warm_up)
        self.policy = policy
        self._can_compress = [policy.can_compress(number) for number in range(len(policy.documents))]
        self._generation += 1

    def to_broadcast(self) -> list[Any]:
        """On the first rank, what has arrived from the control plane; it travels to the others like a request."""
        policy, watched = self.reports.poll_policy(), self.reports.poll_watched()
        return [message for message in (policy, watched) if message is not None]

    # Requests -------------------------------------------------------------------------------------

    def _verdict(self, request: Any, state: RequestState) -> Verdict:
        if state.verdict is None or state.generation != self._generation:
            tags = tags_of(request) if self.rules.rules else ()
            prompt_len, priority = len(request.origin_input_ids), request.priority or 0
            own = own_budget(request)
            verdict = self.rules.decide(prompt_len, own, priority, tags)
            limit = (self.slots.total - SLACK - 1) * self.slots.page
            if own and verdict.trigger > limit and getattr(request, BEYOND, False):
                # It was accepted under another policy, with another interval.
                interval = self.rules.budgetings[verdict.policy].interval
                verdict = self.rules.decide(prompt_len, max(1, limit - interval), priority, tags)
            state.verdict = verdict
            state.generation = self._generation
        return state.verdict

    def verdict(self, request: Any) -> Verdict:
        """What the policy in force says of a request."""
        return self._verdict(request, state_of(request))

    def evicted(self, request: Any) -> int:
        """E of a request."""
        state = getattr(request, ATTRIBUTE, None)
        return 0 if state is None else state.evicted

    def growth(self, request: Any, resident: int) -> int | None:
        """See admission.Bounds."""
        verdict = self.verdict(request)
        if not verdict.trigger or not self._can_compress[verdict.policy]:
            return None
        return max(0, verdict.trigger - resident)

    def bound(self, request: Any) -> Bound | None:
        """See admission.Bounds."""
        verdict, chunk = self.verdict(request), self.scheduler.chunked_prefill_size
        if not (chunk and verdict.trigger and self._can_compress[verdict.policy] and takes_rounds(request)):
            return None
        return Bound.of(verdict.keep, verdict.trigger, chunk, self.slots.total, self.slots.page)

    def give_up(self, request: Any) -> Any:
        """See admission.Bounds."""
        return self.chunks.give_up(request)

    def _released(self, request: Any) -> None:
        """A request gives its KV back: it ended, was aborted or is retracted. E dies with it."""
        state = state_of(request)
        self.reports.released(request, state)
        if state.evicted:
            self.compressed -= 1
            request.skip_radix_cache_insert = not state.inserts
        if not request.finished():
            if state.evicted:
                # SGLang appends new output to these tokens when it resumes; they begin E late.
                request.full_untruncated_fill_ids = request.full_untruncated_fill_ids[:0]
            delattr(request, ATTRIBUTE)

    # Steps ----------------------------------------------------------------------------------------

    def _install(self) -> None:
        scheduler, tree = self.scheduler, self.slots.tree
        update, next_batch = scheduler.update_running_batch, scheduler.get_next_batch_to_run
        process, cache_finished = scheduler.process_input_requests, tree.cache_finished_req

        def process_input_requests(received: list[Any]) -> Any:
            own = [r for r in received if isinstance(r, (PolicyInForce, Watched))]
            if own:
                received = [r for r in received if not isinstance(r, (PolicyInForce, Watched))]
            for message in own:
                if isinstance(message, Watched):
                    self.watched = message.request_id
                else:
                    self._use(message)
                    self.reports.in_force(message)
            return process(received)

        def get_next_batch_to_run(*args: Any, **kwargs: Any) -> Any:
            if self._positions_due:
                raise RuntimeError(
                    "triattn: a step ran without ForwardBatch.init_new, so positions would be wrong"
                )
            planned = next_batch(*args, **kwargs)
            self.chunks.after_pass()
            batch = planned.batch_to_run
            if batch is not None and self.compressed:
                self._positions_due = any(map(self.evicted, batch.reqs))
            self.reports.stepped(batch is not None)
            return planned

        def update_running_batch(batch: Any, *args: Any, **kwargs: Any) -> Any:
            self._before_decode(batch)
            return update(batch, *args, **kwargs)

        def cache_finished_req(request: Any, *args: Any, **kwargs: Any) -> Any:
            result = cache_finished(request, *args, **kwargs)
            self._released(request)
            return result

        scheduler.process_input_requests = process_input_requests
        scheduler.get_next_batch_to_run = get_next_batch_to_run
        scheduler.update_running_batch = update_running_batch
        tree.cache_finished_req = cache_finished_req
        scheduler.triattn = self

    def set_positions(self, forward_batch: Any, batch: Any) -> None:
        """After ``ForwardBatch.init_new``: a token's position is its logical one."""
        self._positions_due = False
        if not self.compressed:
            return
        if forward_batch.forward_mode.is_decode():
            # SGLang counts logical lengths as well (orig_seq_lens); seq_lens say what attention reads.
            forward_batch.positions = (batch.orig_seq_lens - 1).clamp(min=0).to(torch.int64)
        elif forward_batch.forward_mode.is_extend():
            shift_positions(self.evicted, forward_batch.positions, batch)

    def _before_decode(self, batch: Any) -> None:
        started = time.perf_counter()
        due: list[tuple[int, Any, RequestState, Verdict]] = []
        resident_total = 0
        for index, request in enumerate(batch.reqs):
            if request.finished() or request.kv is None:
                continue
            resident = request.kv_committed_len
            resident_total += resident
            state = state_of(request)
            verdict = self._verdict(request, state)
            if not verdict.trigger or resident < verdict.trigger or not self._ready(request, state):
                continue
            if self._can_compress[verdict.policy]:
                due.append((index, request, state, verdict))
            else:
                self.reports.skipped(request, "its policy came without statistics")
        self.reports.resident(resident_total)
        if due:
            self._compress(batch, due, started)

    def _ready(self, request: Any, state: RequestState) -> bool:
        """Whether the result of the prefill has been handled (only then is the prompt in the radix tree), and
        more is to be decoded than the step whose result is on its way."""
        if request.decode_batch_idx < 1:
            return False
        generated = request.kv_committed_len + state.evicted - len(request.origin_input_ids) + 1
        return generated < request.sampling_params.max_new_tokens

    def before_chunk(self, request: Any) -> None:
        """The round of a request in mid-prefill, if it is due; its last chunk may still run."""
        started = time.perf_counter()
        state, resident = state_of(request), request.kv_committed_len
        verdict = self._verdict(request, state)
        running = self.scheduler.running_batch.reqs
        self.reports.resident(resident + sum(r.kv_committed_len for r in running if not r.finished()))
        if not verdict.trigger or resident < verdict.trigger or not takes_rounds(request):
            return
        if not self._can_compress[verdict.policy]:
            self.reports.skipped(request, "its policy came without statistics")
            return
        planned = self._plan(request, state, verdict)
        if planned is not None:
            # The next chunk begins behind what is kept.
            request.already_computed -= planned.plan.resident - planned.plan.keep
            self._launch([planned], started)

    def _compress(
        self, batch: Any, due: list[tuple[int, Any, RequestState, Verdict]], started: float
    ) -> None:
        planned: list[Planned] = []
        shorter = [0] * len(batch.reqs)
        for index, request, state, verdict in due:
            one = self._plan(request, state, verdict)
            if one is not None:
                shorter[index] = one.plan.resident - one.plan.keep
                planned.append(one)
        if planned:
            self._shorten(batch, shorter)
            self._launch(planned, started)

    def _plan(self, request: Any, state: RequestState, verdict: Verdict) -> Planned | None:
        prompt_len, resident = len(request.origin_input_ids), request.kv_committed_len
        budgeting = self.rules.budgetings[verdict.policy]
        pin_prompt = budgeting.pins_prompt(prompt_len, verdict.keep)
        pinned = max(budgeting.sinks, prompt_len if pin_prompt else 0)
        truncated = self.slots.truncate(request, verdict.keep, pinned)
        if truncated is None:
            self.reports.skipped(request, "no free slots for copies of shared ones")
            return None
        scored = (self.policy.revision, verdict.policy)
        plan = RoundPlan(
            request_id=request.rid,
            computed=resident + state.evicted,
            resident=resident,
            previous=state.resident,
            evicted=state.evicted,
            keep=verdict.keep,
            prompt_len=prompt_len,
            pin_prompt=pin_prompt,
            known=state.resident if state.scored == scored else 0,
        )
        state.scored = scored
        self._count(request, state, plan)
        return Planned(plan, verdict.policy, request.req_pool_idx, truncated)

    def _launch(self, planned: list[Planned], started: float) -> None:
        plans = [one.plan for one in planned]
        tables = self.rounds.snapshot([one.row for one in planned], max(plan.resident for plan in plans))
        copies = [one.truncated.copies for one in planned if one.truncated.copies is not None]
        ready = time.perf_counter()
        with self._after_forward():
            self.rounds.run(plans, [one.policy for one in planned], tables, copies)
            for index, plan in enumerate(plans):
                if plan.request_id == self.watched and self.reports.may_show():
                    self.reports.show(plan, self.rounds.histogram(plan, tables[index]))
        for one in planned:
            for release in one.truncated.release:
                release()
        for one in planned:
            self.reports.round(one.plan, one.truncated.copied)
        self.reports.batch(ready - started)

    def _count(self, request: Any, state: RequestState, plan: RoundPlan) -> None:
        if not state.evicted:
            self.compressed += 1
            state.inserts = not request.skip_radix_cache_insert
            # Its slots no longer hold what the tree would promise for its tokens.
            request.skip_radix_cache_insert = True
        state.evicted += plan.resident - plan.keep
        state.resident = plan.keep
        state.rounds += 1

    def _shorten(self, batch: Any, shorter: list[int]) -> None:
        """New tensors, never in place: the forward pass of the step before still reads the old ones."""
        host = torch.tensor(shorter, dtype=batch.seq_lens_cpu.dtype)
        batch.seq_lens_cpu = batch.seq_lens_cpu - host
        if batch.seq_lens.is_cuda:
            host = host.pin_memory()
        batch.seq_lens = batch.seq_lens - host.to(batch.seq_lens.device, non_blocking=True)
        batch.seq_lens_sum = None

    @contextmanager
    def _after_forward(self) -> Iterator[None]:
        """The stream of forward passes, behind everything that the scheduler has launched."""
        scheduler = self.scheduler
        if not scheduler.enable_overlap:
            yield
            return
        with scheduler.forward_stream_ctx:
            scheduler.forward_stream.wait_stream(scheduler.schedule_stream)
            yield
