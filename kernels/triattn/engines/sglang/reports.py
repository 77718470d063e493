"""What an SGLang scheduler tells the control plane: who it is, events, counters. Only the first rank does."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from triattn import wire
from triattn.config import Settings
from triattn.engines import kept
from triattn.engines.policy import PolicyInForce
from triattn.engines.sglang import probe
from triattn.engines.sglang.requests import RequestState, state_of, tags_of
from triattn.engines.totals import LONGEST_ID, MOST_REQUESTS, REPORT_SECONDS, SAFE_INTEGER, Totals
from triattn.errors import ConfigError
from triattn.link import EngineLink
from triattn.plan import RoundPlan

if TYPE_CHECKING:
    from triattn.engines.sglang.scheduler import SchedulerHooks

PICTURE_STEPS = 8
"""Least steps between pictures of what the watched request keeps: counted, so that all ranks make the same ones."""


@dataclass(frozen=True, slots=True)
class Watched:
    """The request whose rounds a control plane wants to see, as every rank gets it; None: none any more."""

    request_id: str | None


class Reports:
    """Counts on every rank; sends on the first, where there is a control plane."""

    def __init__(self, hooks: SchedulerHooks, settings: Settings) -> None:
        self.hooks = hooks
        self.scheduler = hooks.scheduler
        self.totals = Totals()
        self.link: EngineLink | None = None
        self._next = self._next_requests = 0.0
        self._next_picture = 0
        self._watched: str | None = None
        self._picture: tuple[RoundPlan, int, torch.Tensor, Any] | None = None
        if settings.socket and hooks.first_rank:
            self.link = EngineLink(
                settings.socket, self._hello(), validate=self._refusal, curve=settings.curve
            )

    def _hello(self) -> wire.Hello:
        scheduler, slots = self.scheduler, self.hooks.slots
        return wire.Hello(
            protocol=1,
            engine_id=uuid.uuid4().hex,
            engine=wire.EngineInfo(
                name="sglang",
                version=probe.engine_version(),
                runner="overlap" if scheduler.enable_overlap else "normal",
                pid=os.getpid(),
                world_size=scheduler.server_args.tp_size,
            ),
            model=self.hooks.geometry,
            cache=wire.CacheInfo(
                block_size=slots.page,
                blocks=slots.total,
                max_model_len=scheduler.model_config.context_len,
                dtype=str(scheduler.server_args.kv_cache_dtype),
            ),
            capabilities=probe.capabilities(scheduler),
            revision=0,
            next_event=0,
        )

    # Policies.

    def first_policy(self, settings: Settings) -> PolicyInForce:
        """The policy to start with, from the control plane or the settings.

        Raises:
            ConfigError: there is none. LinkError: no control plane gave one.
        """
        if self.link is not None:
            timeout = float(os.environ.get("TRIATTN_START_TIMEOUT", "30"))
            return PolicyInForce.of(self.link.wait_for_policy(timeout))
        if settings.policy is None:
            raise ConfigError("policy", None, "give a policy, or a control plane's socket to get one from")
        return PolicyInForce(0, settings.policy, settings.statistics)

    def _refusal(self, message: wire.SetPolicy) -> wire.Refusal | None:
        try:
            self.hooks.check(PolicyInForce.of(message))
        except ConfigError as error:
            return wire.Refusal(
                revision=message.revision,
                field_=error.field,
                value=str(error.value),
                remedy=error.remedy,
                message=str(error),
            )
        return None

    def poll_policy(self) -> PolicyInForce | None:
        """A policy that has arrived and can work, for the next step."""
        message = self.link.poll_policy(self.totals.step + 1) if self.link is not None else None
        if message is None:
            return None
        policy = PolicyInForce.of(message)
        try:
            self.hooks.check(policy)
        except ConfigError as error:
            # Checked when it arrived; only a file that changed since can end here.
            self.link.refuse(message.revision, error.field, error.value, error.remedy, str(error))
            return None
        return policy

    def in_force(self, policy: PolicyInForce) -> None:
        """Every rank uses this policy from the next step on."""
        if self.link is not None:
            self.link.ack(policy.revision, self.totals.step + 1)

    # What is watched.

    def poll_watched(self) -> Watched | None:
        """Another request than before is watched."""
        watch = self.link.watch if self.link is not None else None
        wanted = watch.kept if watch is not None else None
        if wanted == self._watched:
            return None
        self._watched = wanted
        return Watched(wanted)

    def may_show(self) -> bool:
        """Whether a picture is due; the same on every rank."""
        if self.totals.step < self._next_picture:
            return False
        self._next_picture = self.totals.step + PICTURE_STEPS
        return True

    def show(self, plan: RoundPlan, counts: torch.Tensor) -> None:
        """Take a picture, int32 [layers, kv_heads, bins] on the device; dropped while one is on its way."""
        if self.link is None or self._picture is not None:
            return
        copied = None
        if counts.is_cuda:
            host = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
            counts = host.copy_(counts, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._picture = plan, self.totals.step + 1, counts, copied

    def _send_picture(self) -> None:
        plan, step, counts, copied = self._picture
        if copied is not None and not copied.query():
            return
        self._picture = None
        layers, heads, bins = counts.shape
        self.link.report_kept(
            wire.KeptReport(
                request=plan.request_id,
                step=step,
                computed=plan.computed,
                resident=plan.keep,
                layers=layers,
                kv_heads=heads,
                bins=bins,
                counts=kept.encode(counts),
            )
        )

    def _request_states(self) -> wire.RequestsReport:
        """Running requests, then those that wait, up to MOST_REQUESTS."""
        scheduler = self.scheduler
        running = self._running()
        states: list[wire.RequestState] = []
        omitted = 0
        for state, requests in (("running", running), ("waiting", list(scheduler.waiting_queue))):
            for request in requests:
                if len(states) < MOST_REQUESTS and len(request.rid) <= LONGEST_ID:
                    states.append(self._state(request, state))
                else:
                    omitted += 1
        return wire.RequestsReport(step=self.totals.step, requests=states, omitted=omitted)

    def _state(self, request: Any, state: str) -> wire.RequestState:
        verdict, own = self.hooks.verdict(request), state_of(request)
        resident = request.kv_committed_len
        return wire.RequestState(
            request=request.rid,
            state=state,
            priority=max(-SAFE_INTEGER, min(SAFE_INTEGER, int(request.priority or 0))),
            tags=list(tags_of(request)),
            rule=verdict.rule,
            prompt=len(request.origin_input_ids),
            computed=resident + own.evicted,
            resident=resident,
            budget=verdict.keep,
            evicted_total=own.evicted,
            rounds=own.rounds,
        )

    def _running(self) -> list[Any]:
        batch, chunked = self.scheduler.running_batch, self.scheduler.chunked_req
        requests = [*(batch.reqs if batch is not None else ()), *([] if chunked is None else [chunked])]
        return [r for r in requests if not r.finished()]

    # What happened.

    def resident(self, tokens: int) -> None:
        """Resident tokens of all running requests, before a step."""
        self.totals.resident = tokens
        self.totals.peak_resident = max(self.totals.peak_resident, tokens)

    def skipped(self, request: Any, reason: str) -> None:
        """A round that was due could not be done."""
        self.totals.skipped += 1
        if self.link is not None:
            self.link.emit(wire.SkipEvent(step=self.totals.step + 1, request=request.rid, reason=reason))

    def round(self, plan: RoundPlan, copied: int) -> None:
        """A round was launched."""
        totals, pages = self.totals, self.hooks.slots.pages
        evicted, reclaimed = plan.resident - plan.keep, pages(plan.resident) - pages(plan.keep)
        totals.rounds += 1
        totals.evicted += evicted
        totals.reclaimed += reclaimed
        if self.link is not None:
            self.link.emit(
                wire.RoundEvent(
                    step=totals.step + 1,
                    request=plan.request_id,
                    revision=self.hooks.policy.revision,
                    budget=plan.keep,
                    computed=plan.computed,
                    evicted=evicted,
                    evicted_total=plan.evicted + evicted,
                    blocks_reclaimed=reclaimed,
                    blocks_copied=pages(copied),
                )
            )

    def batch(self, plan_seconds: float) -> None:
        """All rounds of a step were launched."""
        self.totals.batches += 1
        self.totals.plan_seconds += plan_seconds

    def released(self, request: Any, state: RequestState) -> None:
        """A request gave its KV back."""
        totals = self.totals
        finished = request.finished()
        if finished:
            totals.finished += 1
            totals.tokens_generated += len(request.output_ids)
        else:
            totals.preemptions += 1
        if self.link is None or not state.rounds:
            return
        aborted = finished and type(request.finished_reason).__name__ == "FINISH_ABORT"
        self.link.emit(
            wire.FinishEvent(
                step=totals.step,
                request=request.rid,
                reason="aborted" if aborted else "finished" if finished else "preempted",
                computed=request.kv_committed_len + state.evicted,
                evicted_total=state.evicted,
                rounds=state.rounds,
            )
        )

    def stepped(self, ran: bool) -> None:
        """The scheduler has decided what to run next, or that there is nothing."""
        totals = self.totals
        if ran:
            totals.step += 1
            totals.peak_blocks = max(totals.peak_blocks, self.hooks.slots.used)
        if self.link is None:
            return
        totals.round_seconds += self.hooks.rounds.clock.take()
        if self._picture is not None:
            self._send_picture()
        now = time.monotonic()
        if now >= self._next:
            self._next = now + REPORT_SECONDS
            self.link.report(self.counters())
        watch = self.link.watch
        if watch is not None and watch.requests and now >= self._next_requests:
            self._next_requests = now + REPORT_SECONDS
            self.link.report_requests(self._request_states())

    def counters(self) -> wire.Counters:
        """Totals since the engine started, and the present state."""
        totals, scheduler = self.totals, self.scheduler
        running = self._running()
        generated = totals.tokens_generated + sum(len(r.output_ids) for r in running)
        return wire.Counters(
            step=totals.step,
            running=len(running),
            waiting=len(scheduler.waiting_queue),
            resident_tokens=totals.resident if running else 0,
            peak_resident_tokens=totals.peak_resident,
            used_blocks=self.hooks.slots.used,
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
            round_seconds=totals.round_seconds,
            stall_seconds=totals.plan_seconds + totals.round_seconds,
            events_dropped=self.link.events_dropped if self.link is not None else 0,
        )
