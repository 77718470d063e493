"""Rounds between the chunks of a prefill: prompts far longer than the pool, and retracted requests that resume."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from engine.oracle import Oracle
from engine.policies import document, plugin
from engine.scenario import Request
from engine.selection import check_selection

from triattn.engines.sglang.admission import SLACK, Bound

from . import cases
from .driver import Driver
from .rig import check, prompt, run
from .scenario import Scenario

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("page", "radix", "overlap"),
    [(1, True, True), (16, True, True), (16, False, True), (1, False, False)],
    ids=["radix", "radix-pages", "pages", "no-overlap"],
)
def test_prompts_beyond_the_pool(page: int, radix: bool, overlap: bool) -> None:
    result = run(cases.beyond_the_pool(page, radix, overlap))
    check(result, rounds=20)
    assert check_selection(result) == result.rounds
    cases.check_beyond_the_pool(result)


def test_what_is_reserved_suffices() -> None:
    """Whatever the pool: admitted alone, a request has room for its chunks and for copies of what it shares."""
    seen = 0
    for page, pages, keep, interval, size in itertools.product(
        (1, 16), (6, 12, 40, 300), (20, 64, 300), (1, 40), (16, 100, 5000)
    ):
        bound = Bound.of(keep, keep + interval, size, pages, page)
        pool = pages * page
        if bound is None:
            assert keep + interval + page > pool - SLACK * page or size < page
            continue
        seen += 1
        assert 0 < bound.chunk <= size
        assert bound.most_prefix >= 0
        for prefix in range(0, bound.most_prefix + 1, page):
            # SGLang admits what is less than what is left beside the shared part.
            assert bound.need(prefix) + page < pool - prefix
            # It has a chunk in hand when a round comes, and copies what that round would overwrite.
            shared = min(prefix, keep)
            resident = max(bound.most, prefix + bound.chunk)
            assert resident - prefix + shared <= bound.need(prefix)
            assert bound.need(prefix) > bound.chunk
    assert seen > 50


def collect_prompt(driver: Driver) -> dict[str, list[float]]:
    """Log-probs of prompts' tokens but the first."""
    return {name: driver._reqs[name].logprob.input_token_logprobs_val[1:] for name in driver.outcomes}


def test_log_probs_of_the_prompt() -> None:
    result = run(
        Scenario(
            "qwen3",
            plugin("qwen3", "random"),
            requests=[Request("a", prompt(1, 260), 10), Request("b", prompt(2, 30), 10, arrive=2)],
            tokens=208,
            chunk=40,
            max_model_len=400,
            prompt_log_probs=True,
            on_finish=collect_prompt,
        )
    )
    check(result, rounds=4)
    for name, found in result.extra.items():
        tokens = result[name].request.prompt
        dense = Oracle(result.scenario.spec)(tokens, result[name].rounds.get(0, [])).numpy()
        expected = dense[np.arange(len(tokens) - 1), tokens[1:]]
        assert np.abs(np.array(found) - expected).max() < 1e-4, name


@pytest.mark.parametrize("page", [1, 16])
def test_resumed_beyond_the_pool(page: int) -> None:
    result = run(cases.resumed_beyond_the_pool(page))
    check(result, rounds=60)
    assert check_selection(result) == result.rounds
    cases.check_resumed_beyond_the_pool(result)


def test_tensor_parallel() -> None:
    result = run(
        Scenario(
            "llama",
            plugin("llama", "keydiff"),
            requests=[Request("a", prompt(1, 20), 20), Request("b", prompt(2, 300), 12, arrive=3)],
            tokens=208,
            chunk=48,
            max_model_len=400,
            tp=2,
        )
    )
    check(result, rounds=4)
    assert result["b"].rounds[0][0].computed < 200
    assert check_selection(result) == result.rounds


class ChangeAt:
    """Sends a policy once while a request is in mid-prefill."""

    def __init__(self, name: str, policy: dict[str, Any]) -> None:
        self.name = name
        self.policy = policy
        self.sent = False

    def __call__(self, driver: Driver) -> None:
        chunked = driver.scheduler.chunked_req
        if self.sent or chunked is None or chunked.rid != f"{self.name}.":
            return
        if driver.hooks.evicted(chunked):
            self.sent = True
            driver.set_policy(self.policy)
            driver.wait_for(lambda: driver.hooks.reports.link._pending is not None)


def errors(driver: Driver) -> dict[str, str]:
    """Why requests ended."""
    return {name: str(driver._reqs[name].finished_reason.to_json()) for name in driver.outcomes}


def test_a_policy_that_bounds_nothing_any_more() -> None:
    """In mid-prefill: one that fits without a budget goes on or is given back, one that cannot ends, with a reason."""
    result = run(
        Scenario(
            "llama",
            control=document("keydiff"),
            requests=[
                Request("short", prompt(1, 40), 30),
                Request("beyond", prompt(2, 400), 10, arrive=3),
                Request("fits", prompt(3, 150), 10, arrive=4),
            ],
            tokens=208,
            chunk=48,
            max_model_len=600,
            on_step=ChangeAt("beyond", document("keydiff", budget=0)),
            on_finish=errors,
        )
    )
    assert "does not keep it inside" in result.extra["beyond"]
    assert result["beyond"].finish == "abort"
    result["beyond"].aborted = True
    assert result["beyond"].round_count >= 1
    report = check(result)
    assert report.tokens == 40


class Break:
    """Takes something away that rounds between chunks depend on."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.done = False

    def __call__(self, driver: Driver) -> None:
        if self.done:
            return
        self.done = True
        from triattn.engines.sglang import chunks, scheduler

        count, refill = scheduler.SchedulerHooks._count, chunks.refill

        def forgetful(hooks: Any, request: Any, *args: Any) -> None:
            count(hooks, request, *args)
            request.skip_radix_cache_insert = False

        def late(request: Any, evicted: int) -> None:
            refill(request, evicted - 1 if evicted else 0)
            if evicted:
                request.full_untruncated_fill_ids.pop()

        if self.what == "positions":
            scheduler.shift_positions = lambda *_: None
        elif self.what == "tokens":
            chunks.refill = late
        else:
            scheduler.SchedulerHooks._count = forgetful


@pytest.mark.parametrize(
    ("what", "seen"),
    [
        ("positions", "log-probs differ"),
        ("tokens", "log-probs differ"),
        ("tree", "evicted earlier|log-probs differ"),
    ],
)
def test_the_comparison_bites(what: str, seen: str) -> None:
    requests = [Request("first", prompt(1, 160), 4), Request("same", prompt(1, 160), 4, arrive=12)]
    scenario = Scenario(
        "llama",
        plugin("llama", "keydiff"),
        requests=requests,
        tokens=1024,
        chunk=48,
        on_step=Break(what),
    )
    with pytest.raises(AssertionError, match=seen):
        check(run(scenario))
