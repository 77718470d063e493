"""The scheduler process: polls the policy, plans rounds before each step, ships them to every rank.

vLLM source: ``vllm/v1/core/sched/scheduler.py``. A round may use every token that the scheduler counts
as computed, in flight or not: the compaction follows the step that writes it on the same stream.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from triattn import wire
from triattn.config import ConfigError, Settings
from triattn.engines.policy import PolicyInForce, check_policy, model_shape
from triattn.engines.rounds import uses_kernels
from triattn.engines.totals import REPORT_SECONDS, Totals
from triattn.engines.vllm import probe
from triattn.engines.vllm.blocks import Compressed, GroupBlocks
from triattn.engines.vllm.reports import counters, own_budget, request_states, tags_of, watched_round
from triattn.engines.vllm.room import check_room, chunk_limit
from triattn.engines.vllm.step_report import StepReport, report_of
from triattn.link import EngineLink
from triattn.plan import RoundPlan
from triattn.rules import Rules, Verdict

PICTURE_SECONDS = 0.25
"""Least time between pictures of what the watched request keeps."""


@dataclass(slots=True)
class StepPlan:
    """What a step carries to the workers besides vLLM's own scheduler output."""

    rounds: list[RoundPlan] = field(default_factory=list)
    policy: PolicyInForce | None = None
    """Sent with the first step that runs under it."""
    step: int = 0
    watched: str | None = None
    """A request among the rounds whose kept tokens are to be shown."""


class SchedulerHooks:
    """Everything triattn does in one vLLM scheduler. Installed on the instance, not on the class."""

    def __init__(self, scheduler: Any, settings: Settings) -> None:
        self.scheduler = scheduler
        self.config = scheduler.vllm_config
        self.group = probe.check_scheduler(scheduler)
        self.geometry = probe.model_geometry(self.config)
        self.chunk = int(self.config.scheduler_config.max_num_batched_tokens)
        manager = scheduler.kv_cache_manager.coordinator.single_type_managers[self.group]
        self.blocks = GroupBlocks(manager, self._peak, self._freed)
        self.pool = manager.block_pool
        self.usable_blocks = self.pool.num_gpu_blocks - 1
        self.totals = Totals()
        self.queries = settings.queries
        self.link: EngineLink | None = None
        self._to_ship: PolicyInForce | None = None
        self._next_report = self._next_requests = self._next_picture = 0.0
        self._known_good: set[Any] = set()
        self.shape = model_shape(self.config.model_config.hf_text_config, self.geometry)

        first = PolicyInForce(0, settings.policy, settings.statistics) if settings.policy else None
        if settings.socket:
            self.link = EngineLink(
                settings.socket, self._hello(), validate=self._refusal, curve=settings.curve
            )
            message = self.link.wait_for_policy(float(os.environ.get("TRIATTN_START_TIMEOUT", "30")))
            first = PolicyInForce.of(message)
        if first is None:
            raise ConfigError("policy", None, "give a policy, or a control plane's socket to get one from")
        self._use(first)
        self._install()

    # Policy ---------------------------------------------------------------------------------------

    def _hello(self) -> wire.Hello:
        parallel = self.config.parallel_config
        return wire.Hello(
            protocol=1,
            engine_id=uuid.uuid4().hex,
            engine=wire.EngineInfo(
                name="vllm",
                version=probe.engine_version(),
                runner=probe.runner_name(self.config),
                pid=os.getpid(),
                world_size=parallel.world_size,
            ),
            model=self.geometry,
            cache=wire.CacheInfo(
                block_size=self.blocks.block_size,
                blocks=self.usable_blocks,
                max_model_len=self.config.model_config.max_model_len,
                dtype=str(self.config.cache_config.cache_dtype),
            ),
            capabilities=probe.capabilities(self.config),
            revision=0,
            next_event=0,
        )

    def _check(self, policy: PolicyInForce) -> Rules:
        """The policy's integers, if it can work here; touches nothing (the link's thread calls it too).

        Raises:
            ConfigError: it cannot.
        """
        rules = Rules.of(policy, self.blocks.block_size)
        parallel = self.config.parallel_config
        check_policy(
            policy,
            rules,
            self.geometry,
            self.shape,
            tp_size=parallel.tensor_parallel_size,
            pp_size=parallel.pipeline_parallel_size,
            kernels=uses_kernels(self.config.device_config.device_type),
            queries=self.queries,
            known=self._known_good,
        )
        check_room(
            rules,
            *self._room(),
            chunked_prefill=bool(self.scheduler.scheduler_config.enable_chunked_prefill),
        )
        return rules

    def _room(self) -> tuple[int, int, int]:
        """Tokens that the cache holds, the longest that a request may become, tokens of a block."""
        size = self.blocks.block_size
        return self.usable_blocks * size, self.config.model_config.max_model_len, size

    def _refusal(self, message: wire.SetPolicy) -> wire.Refusal | None:
        try:
            self._check(PolicyInForce.of(message))
        except ConfigError as error:
            return wire.Refusal(
                revision=message.revision,
                field_=error.field,
                value=str(error.value),
                remedy=error.remedy,
                message=str(error),
            )
        return None

    def _use(self, policy: PolicyInForce) -> None:
        """Put a policy in force from the next step on; what it says of each request is decided anew there."""
        self.rules = self._check(policy)
        self.policy = policy
        self._can_compress = [policy.can_compress(number) for number in range(len(policy.documents))]
        self._verdicts: dict[str, Verdict] = {}
        self._to_ship = policy
        chunk = chunk_limit(self.rules, *self._room())
        # Not vLLM's own long_prefill_token_threshold, which it waives for a request that prefills alone.
        if chunk is not None and chunk < self.chunk:
            self.scheduler.max_num_scheduled_tokens = chunk
            self.chunk = chunk
        self._own_limit = None if chunk is None else self._room()[0] - self.chunk

    def _poll_policy(self) -> None:
        message = self.link.poll_policy(self.totals.step) if self.link is not None else None
        if message is None:
            return
        try:
            self._use(PolicyInForce.of(message))
        except ConfigError as error:
            # Checked when it arrived; only a file that changed since can end here.
            self.link.refuse(message.revision, error.field, error.value, error.remedy, str(error))

    # Requests -------------------------------------------------------------------------------------

    def verdict(self, request: Any) -> Verdict:
        """What the policy in force says of a request."""
        known = self._verdicts.get(request.request_id)
        if known is not None:
            return known
        tags = tags_of(request) if self.rules.rules else ()
        prompt_len, own = request.num_prompt_tokens, own_budget(request)
        verdict = self.rules.decide(prompt_len, own, request.priority, tags)
        limit = self._own_limit
        if own and limit is not None and verdict.trigger > limit and self._outgrows_cache(request):
            # Its budget was checked against another policy. A request that cannot fit would wait for ever, and
            # all behind it; the policies' own budgets do fit (check_room).
            interval = self.rules.budgetings[verdict.policy].interval
            verdict = self.rules.decide(prompt_len, limit - interval, request.priority, tags)
        return verdict

    def _outgrows_cache(self, request: Any) -> bool:
        room, longest, _ = self._room()
        return min(longest, request.num_prompt_tokens + request.max_tokens) > room

    def _peak(self, request_id: str) -> int | None:
        """Most resident tokens that a request can reach; None: no bound."""
        request = self.scheduler.requests.get(request_id)
        if request is None:
            return None
        trigger = self.verdict(request).trigger
        return trigger - 1 + self.chunk if trigger else None

    def _freed(self, request_id: str, state: Compressed | None) -> None:
        self._verdicts.pop(request_id, None)
        request = self.scheduler.requests.get(request_id)
        if self.link is None or request is None or state is None:
            return
        if not request.is_finished():
            reason = "preempted"
        else:
            reason = "aborted" if request.status.name == "FINISHED_ABORTED" else "finished"
        self.link.emit(
            wire.FinishEvent(
                step=self.totals.step,
                request=request_id,
                reason=reason,
                computed=request.num_computed_tokens,
                evicted_total=state.evicted,
                rounds=state.rounds,
            )
        )

    # Steps ----------------------------------------------------------------------------------------

    def _install(self) -> None:
        scheduler = self.scheduler
        schedule = scheduler.schedule
        preempt = scheduler._preempt_request
        free_request = scheduler._free_request
        update_from_output = scheduler.update_from_output

        def schedule_with_rounds(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            rounds = self._before()
            self.totals.plan_seconds += time.perf_counter() - started
            output = schedule(*args, **kwargs)
            self._after(output, rounds)
            return output

        def count_preemption(*args: Any, **kwargs: Any) -> Any:
            self.totals.preemptions += 1
            return preempt(*args, **kwargs)

        def count_finish(request: Any, *args: Any, **kwargs: Any) -> Any:
            self.totals.finished += 1
            self.totals.tokens_generated += request.num_output_tokens
            return free_request(request, *args, **kwargs)

        def update(scheduler_output: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
            report = report_of(output)
            if report is not None:
                self._hear(report)
            return update_from_output(scheduler_output, output, *args, **kwargs)

        scheduler.update_from_output = update
        scheduler.schedule = schedule_with_rounds
        scheduler._preempt_request = count_preemption
        scheduler._free_request = count_finish
        scheduler.triattn = self

    def _before(self) -> list[RoundPlan]:
        totals = self.totals
        totals.step += 1
        self._poll_policy()
        compressed = self.blocks.compressed
        rounds: list[RoundPlan] = []
        cut_off: list[Any] = []
        resident_total = 0
        verdicts = self._verdicts
        for request in self.scheduler.running:
            request_id = request.request_id
            state = compressed.get(request_id)
            resident = request.num_computed_tokens - (0 if state is None else state.evicted)
            resident_total += resident
            verdict = verdicts.get(request_id)
            if verdict is None:
                verdict = verdicts[request_id] = self.verdict(request)
            if not verdict.trigger or resident < verdict.trigger:
                continue
            if not self._can_compress[verdict.policy]:
                name = self.policy.documents[verdict.policy].name
                self._skip(request, f"policy {name!r} came without statistics")
                continue
            plan = self._plan(request, state, resident, verdict, cut_off)
            if plan is not None:
                rounds.append(plan)
        if cut_off:
            self.pool.free_blocks(cut_off)
        if rounds:
            totals.batches += 1
        totals.resident = resident_total
        totals.peak_resident = max(totals.peak_resident, resident_total)
        return rounds

    def _skip(self, request: Any, reason: str) -> None:
        self.totals.skipped += 1
        if self.link is not None:
            self.link.emit(wire.SkipEvent(step=self.totals.step, request=request.request_id, reason=reason))

    def _plan(
        self, request: Any, state: Compressed | None, resident: int, verdict: Verdict, cut_off: list[Any]
    ) -> RoundPlan | None:
        request_id, prompt_len, keep = request.request_id, request.num_prompt_tokens, verdict.keep
        budgeting = self.rules.budgetings[verdict.policy]
        pin_prompt = budgeting.pins_prompt(prompt_len, keep)
        pinned = max(budgeting.sinks, prompt_len if pin_prompt else 0)
        # Rows below the first eviction of a request hold the position of their own number; afterwards
        # only pinned ones surely still do, which is all that matters here: they are never overwritten.
        result = self.blocks.truncate(request_id, keep, pinned, prompt_len)
        if result is None:
            self._skip(request, "no free block for a shared block's copy")
            return None
        copies, freed = result
        cut_off.extend(freed)
        evicted = 0 if state is None else state.evicted
        scored = (self.policy.revision, verdict.policy)
        plan = RoundPlan(
            request_id=request_id,
            computed=request.num_computed_tokens,
            resident=resident,
            previous=0 if state is None else state.resident,
            evicted=evicted,
            keep=keep,
            prompt_len=prompt_len,
            pin_prompt=pin_prompt,
            copies=copies,
            policy=verdict.policy,
            known=state.resident if state is not None and state.scored == scored else 0,
        )
        total = evicted + resident - keep
        rounds = 1 if state is None else state.rounds + 1
        self.blocks.compressed[request_id] = Compressed(total, keep, rounds, scored)
        reclaimed = len(freed) - len(copies)
        self.totals.rounds += 1
        self.totals.evicted += resident - keep
        self.totals.reclaimed += reclaimed
        if self.link is not None:
            self.link.emit(
                wire.RoundEvent(
                    step=self.totals.step,
                    request=request_id,
                    revision=self.policy.revision,
                    budget=keep,
                    computed=plan.computed,
                    evicted=resident - keep,
                    evicted_total=total,
                    blocks_reclaimed=reclaimed,
                    blocks_copied=len(copies),
                )
            )
        return plan

    def _after(self, output: Any, rounds: list[RoundPlan]) -> None:
        # A request preempted inside this very step has lost its blocks, and its plan with them.
        compressed = self.blocks.compressed
        live = [plan for plan in rounds if plan.request_id in compressed]
        ship, self._to_ship = self._to_ship, None
        if live or ship is not None:
            output.triattn = StepPlan(live, ship, self.totals.step, self._watched(live))
        if ship is not None and self.link is not None and ship.revision:
            self.link.ack(ship.revision, self.totals.step)
        used = self.usable_blocks - self.pool.get_num_free_blocks()
        self.totals.peak_blocks = max(self.totals.peak_blocks, used)
        if self.link is not None:
            self._report(self.link)

    def _watched(self, live: list[RoundPlan]) -> str | None:
        """The request of this step's rounds that a control plane wants to see, not too often."""
        watch = self.link.watch if self.link is not None else None
        if watch is None or watch.kept is None or not live or time.monotonic() < self._next_picture:
            return None
        found = watched_round(watch.kept, (plan.request_id for plan in live))
        if found is not None:
            self._next_picture = time.monotonic() + PICTURE_SECONDS
        return found

    def _report(self, link: EngineLink) -> None:
        now, idle, watch = time.monotonic(), not self.scheduler.running, link.watch
        if now >= self._next_report or idle:
            self._next_report = now + REPORT_SECONDS
            link.report(self.counters())
        # The last word of an engine that falls idle is kept by the link for whoever watches next.
        if idle or (watch is not None and watch.requests and now >= self._next_requests):
            self._next_requests = now + REPORT_SECONDS
            link.report_requests(request_states(self))

    def _hear(self, report: StepReport) -> None:
        """What a worker sent back with the output of a step."""
        self.totals.round_seconds += report.round_seconds
        kept = report.kept
        if kept is None or self.link is None:
            return
        self.link.report_kept(
            wire.KeptReport(
                request=kept.request_id,
                step=kept.step,
                computed=kept.computed,
                resident=kept.resident,
                layers=kept.layers,
                kv_heads=kept.kv_heads,
                bins=kept.bins,
                counts=kept.counts,
            )
        )

    def counters(self) -> wire.Counters:
        """Totals since the engine started, and the present state."""
        return counters(self)
