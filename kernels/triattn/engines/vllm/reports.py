"""What the scheduler's side tells the control plane: totals, and the state of requests while it watches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from triattn import wire
from triattn.engines.totals import LONGEST_ID, MOST_REQUESTS, SAFE_INTEGER
from triattn.errors import ConfigError
from triattn.rules import BUDGET_OPTION, TAGS_OPTION, parse_budget, parse_tags

if TYPE_CHECKING:
    from triattn.engines.vllm.scheduler import SchedulerHooks


def _option(request: Any, name: str) -> Any:
    params = request.sampling_params
    extra = params.extra_args if params is not None else None
    return extra.get(name) if extra else None


def own_budget(request: Any) -> int | None:
    """The budget that a request asks for in tokens (0: never compress); None: none, or none that can be read."""
    value = _option(request, BUDGET_OPTION)
    if value is None:
        return None
    try:
        return parse_budget(value)
    except ConfigError:  # refused where the request came in; no other request may suffer from it
        return None


def tags_of(request: Any) -> tuple[str, ...]:
    """The tags of a request; none where they cannot be read."""
    try:
        return parse_tags(_option(request, TAGS_OPTION))
    except ConfigError:
        return ()


def counters(hooks: SchedulerHooks) -> wire.Counters:
    """Totals since the engine started, and the present state."""
    totals, scheduler = hooks.totals, hooks.scheduler
    generated = totals.tokens_generated + sum(r.num_output_tokens for r in scheduler.running)
    return wire.Counters(
        step=totals.step,
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        resident_tokens=totals.resident,
        peak_resident_tokens=totals.peak_resident,
        used_blocks=hooks.usable_blocks - hooks.pool.get_num_free_blocks(),
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
        events_dropped=hooks.link.events_dropped if hooks.link is not None else 0,
    )


def request_states(hooks: SchedulerHooks) -> wire.RequestsReport:
    """Running requests, then those that wait, up to MOST_REQUESTS."""
    scheduler = hooks.scheduler
    running = list(scheduler.running)
    names = {request.request_id for request in running}
    waiting = (
        request
        for request in scheduler.requests.values()
        if request.request_id not in names and not request.is_finished()
    )
    states: list[wire.RequestState] = []
    omitted = 0
    for state, requests in (("running", running), ("waiting", waiting)):
        for request in requests:
            if len(states) < MOST_REQUESTS and len(request.request_id) <= LONGEST_ID:
                states.append(_state(hooks, request, state))
            else:
                omitted += 1
    return wire.RequestsReport(step=hooks.totals.step, requests=states, omitted=omitted)


def _state(hooks: SchedulerHooks, request: Any, state: str) -> wire.RequestState:
    verdict = hooks.verdict(request)
    compressed = hooks.blocks.compressed.get(request.request_id)
    evicted = 0 if compressed is None else compressed.evicted
    return wire.RequestState(
        request=request.request_id,
        state=state,
        priority=max(-SAFE_INTEGER, min(SAFE_INTEGER, int(request.priority))),
        tags=list(tags_of(request)),
        rule=verdict.rule,
        prompt=request.num_prompt_tokens,
        computed=request.num_computed_tokens,
        resident=request.num_computed_tokens - evicted,
        budget=verdict.keep,
        evicted_total=evicted,
        rounds=0 if compressed is None else compressed.rounds,
    )


def watched_round(kept: str, request_ids: Iterable[str]) -> str | None:
    """Which of these requests is the watched one: by its own id, or by the one that its client knows.

    vLLM adds a dash and eight characters to the client's id (``InputProcessor.assign_request_id``).
    """
    stem = f"{kept}-"
    for request_id in request_ids:
        if request_id == kept or (request_id.startswith(stem) and len(request_id) == len(stem) + 8):
            return request_id
    return None
