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
from triattn.engines.vllm import probe
from triattn.engines.vllm.blocks import Compressed, GroupBlocks
from triattn.engines.vllm.policy import PolicyInForce, can_compress, check_policy
from triattn.link import EngineLink
from triattn.plan import Budgeting, RoundPlan

REPORT_SECONDS = 0.5
"""Interval of counter reports to the control plane."""


@dataclass(slots=True)
class StepPlan:
    """What a step carries to the workers besides vLLM's own scheduler output."""

    rounds: list[RoundPlan] = field(default_factory=list)
    policy: PolicyInForce | None = None
    """Sent with the first step that runs under it."""


@dataclass(slots=True)
class Totals:
    step: int = 0
    peak_resident: int = 0
    peak_blocks: int = 0
    resident: int = 0
    tokens_generated: int = 0
    finished: int = 0
    preemptions: int = 0
    rounds: int = 0
    evicted: int = 0
    reclaimed: int = 0
    skipped: int = 0
    batches: int = 0
    """Steps in which at least one round ran."""
    plan_seconds: float = 0.0


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
        self.link: EngineLink | None = None
        self._to_ship: PolicyInForce | None = None
        self._next_report = 0.0

        first = PolicyInForce(0, settings.policy, settings.statistics) if settings.policy else None
        if settings.socket:
            self.link = EngineLink(
                settings.socket, self._hello(), validate=self._refusal, curve=settings.curve
            )
            message = self.link.wait_for_policy(float(os.environ.get("TRIATTN_START_TIMEOUT", "30")))
            first = PolicyInForce(message.revision, message.policy, message.statistics)
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

    def _check(self, policy: PolicyInForce) -> Budgeting:
        """The policy's integers, if it can work here; touches nothing (the link's thread calls it too).

        Raises:
            ConfigError: it cannot.
        """
        budgeting = Budgeting.of(policy.document, self.blocks.block_size)
        check_policy(policy, self.geometry, self.config)
        self._check_room(budgeting)
        return budgeting

    def _refusal(self, message: wire.SetPolicy) -> wire.Refusal | None:
        try:
            self._check(PolicyInForce(message.revision, message.policy, message.statistics))
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
        """Put a policy in force from the next step on."""
        self.policy, self.budgeting = policy, self._check(policy)
        self._can_compress = can_compress(policy)
        self._triggers: dict[str, int] = {}
        self._to_ship = policy
        self._limit_chunks()

    def _check_room(self, budgeting: Budgeting) -> None:
        """The cache must hold one request at its largest; otherwise it would never be scheduled."""
        room = self.usable_blocks * self.blocks.block_size
        longest = self.config.model_config.max_model_len
        if longest <= room:
            return
        if not self.scheduler.scheduler_config.enable_chunked_prefill:
            raise ConfigError(
                "enable_chunked_prefill", False, "prompts beyond the cache need chunked prefill; turn it on"
            )
        if not budgeting.budget:
            raise ConfigError(
                "budget",
                0,
                f"nothing is compressed, but max_model_len {longest} exceeds the cache of {room} tokens; "
                "set a budget or lower --max-model-len",
            )
        if not budgeting.count_prompt:
            raise ConfigError(
                "countPrompt",
                False,
                f"prompts are not bounded, but max_model_len {longest} exceeds the cache of {room} tokens; "
                "count the prompt or lower --max-model-len",
            )
        if room - budgeting.trigger(0) < self.blocks.block_size:
            raise ConfigError(
                "budget",
                budgeting.budget,
                f"budget + interval = {budgeting.trigger(0)} leaves no room in a cache of {room} tokens; "
                "use a smaller budget or give the cache more memory",
            )

    def _limit_chunks(self) -> None:
        """Where a request may be longer than the cache, no prefill chunk may overflow it."""
        room = self.usable_blocks * self.blocks.block_size
        if self.config.model_config.max_model_len <= room:
            return
        chunk = room - self.budgeting.trigger(0)
        chunk -= chunk % self.blocks.block_size
        # Not vLLM's own long_prefill_token_threshold, which it waives for a request that prefills alone.
        if chunk < self.chunk:
            self.scheduler.max_num_scheduled_tokens = chunk
            self.chunk = chunk

    def _poll_policy(self) -> None:
        message = self.link.poll_policy(self.totals.step) if self.link is not None else None
        if message is None:
            return
        try:
            self._use(PolicyInForce(message.revision, message.policy, message.statistics))
        except ConfigError as error:
            # Checked when it arrived; only a file that changed since can end here.
            self.link.refuse(message.revision, error.field, error.value, error.remedy, str(error))

    # Requests -------------------------------------------------------------------------------------

    def budget_of(self, request: Any) -> int | None:
        """A request's own budget in tokens (0: never compress), or None."""
        params = request.sampling_params
        extra = params.extra_args if params is not None else None
        value = extra.get("triattn_budget") if extra else None
        return int(value) if value is not None else None

    def _peak(self, request_id: str) -> int | None:
        request = self.scheduler.requests.get(request_id)
        if request is None:
            return None
        return self.budgeting.peak(request.num_prompt_tokens, self.chunk, self.budget_of(request))

    def _freed(self, request_id: str, state: Compressed | None) -> None:
        self._triggers.pop(request_id, None)
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

        scheduler.schedule = schedule_with_rounds
        scheduler._preempt_request = count_preemption
        scheduler._free_request = count_finish
        scheduler.triattn = self

    def _before(self) -> list[RoundPlan]:
        totals = self.totals
        totals.step += 1
        self._poll_policy()
        budgeting, compressed = self.budgeting, self.blocks.compressed
        rounds: list[RoundPlan] = []
        cut_off: list[Any] = []
        resident_total = 0
        triggers = self._triggers
        for request in self.scheduler.running:
            request_id = request.request_id
            state = compressed.get(request_id)
            resident = request.num_computed_tokens - (0 if state is None else state.evicted)
            resident_total += resident
            trigger = triggers.get(request_id)
            if trigger is None:
                trigger = budgeting.trigger(request.num_prompt_tokens, self.budget_of(request))
                triggers[request_id] = trigger
            if not trigger or resident < trigger:
                continue
            if not self._can_compress:
                self._skip(request, f"policy {self.policy.document.name!r} came without statistics")
                continue
            plan = self._plan(request, state, resident, trigger - budgeting.interval, cut_off)
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
        self, request: Any, state: Compressed | None, resident: int, keep: int, cut_off: list[Any]
    ) -> RoundPlan | None:
        request_id, prompt_len = request.request_id, request.num_prompt_tokens
        pin_prompt = self.budgeting.pins_prompt(prompt_len, keep)
        pinned = max(self.budgeting.sinks, prompt_len if pin_prompt else 0)
        # Rows below the first eviction of a request hold the position of their own number; afterwards
        # only pinned ones surely still do, which is all that matters here: they are never overwritten.
        result = self.blocks.truncate(request_id, keep, pinned, prompt_len)
        if result is None:
            self._skip(request, "no free block for a shared block's copy")
            return None
        copies, freed = result
        cut_off.extend(freed)
        evicted = 0 if state is None else state.evicted
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
        )
        total = evicted + resident - keep
        self.blocks.compressed[request_id] = Compressed(total, keep, 1 if state is None else state.rounds + 1)
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
            output.triattn = StepPlan(live, ship)
        if ship is not None and self.link is not None and ship.revision:
            self.link.ack(ship.revision, self.totals.step)
        used = self.usable_blocks - self.pool.get_num_free_blocks()
        self.totals.peak_blocks = max(self.totals.peak_blocks, used)
        if self.link is not None:
            now = time.monotonic()
            if now >= self._next_report or not self.scheduler.running:
                self._next_report = now + REPORT_SECONDS
                self.link.report(self.counters())

    def counters(self) -> wire.Counters:
        """Totals since the engine started, and the present state."""
        totals, scheduler = self.totals, self.scheduler
        generated = totals.tokens_generated + sum(r.num_output_tokens for r in scheduler.running)
        return wire.Counters(
            step=totals.step,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            resident_tokens=totals.resident,
            peak_resident_tokens=totals.peak_resident,
            used_blocks=self.usable_blocks - self.pool.get_num_free_blocks(),
            peak_used_blocks=totals.peak_blocks,
            tokens_generated=generated,
            requests_finished=totals.finished,
            preemptions=totals.preemptions,
            rounds=totals.rounds,
            tokens_evicted=totals.evicted,
            blocks_reclaimed=totals.reclaimed,
            rounds_skipped=totals.skipped,
            round_batches=totals.batches,
            plan_seconds=totals.plan_seconds,
            round_seconds=0.0,
            stall_seconds=totals.plan_seconds,
            events_dropped=self.link.events_dropped if self.link is not None else 0,
        )
