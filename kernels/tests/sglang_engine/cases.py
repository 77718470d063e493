"""What both the tests on a CPU and those on a GPU run, and what is to be seen afterwards."""

from __future__ import annotations

from engine.policies import plugin
from engine.scenario import Request, Run

from .driver import Driver
from .rig import prompt
from .scenario import Scenario


def overcommit(driver: Driver) -> None:
    """As if requests generated nothing of what they ask for: SGLang then admits more than fits."""
    driver.scheduler.new_token_ratio_tracker.current = 0.0


class RetractAt:
    """At these steps SGLang retracts all but one, as its own test mode does."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def __call__(self, driver: Driver) -> None:
        from sglang.srt.managers import scheduler

        done = driver._retractions
        scheduler.TEST_RETRACT_INTERVAL = 1
        scheduler.TEST_RETRACT = done < len(self.steps) and driver.step >= self.steps[done]


def shared_prompts(page: int, overlap: bool = True) -> Scenario:
    """Prompts in the radix tree, some pinned and left there, some that compete and are copied out of it."""
    shared = prompt(8, 48)
    return Scenario(
        "llama",
        plugin("llama", "keydiff", budget=96),
        requests=[
            Request("a", shared + prompt(1, 10), 70),
            Request("b", shared + prompt(2, 140), 40, arrive=3),
            Request("gone", shared, 80, arrive=5, abort_after=60),
            Request("same", shared + prompt(1, 10), 70, arrive=40),
            Request("c", prompt(3, 20), 110, arrive=30),
        ],
        chunk=64,
        page=page,
        overlap=overlap,
    )


def check_shared_prompts(run: Run) -> None:
    """They were found in the tree."""
    assert run["b"].cached_tokens >= 48
    assert run["same"].cached_tokens >= 48


def aborts(page: int) -> Scenario:
    """Waiting, in prefill, before, between and right at rounds."""
    return Scenario(
        "llama",
        plugin("llama", "random", interval=4),
        requests=[
            Request("stays", prompt(1, 40), 60),
            *(Request(f"a{i}", prompt(i, 50), 80, arrive=i, abort_after=10 + i) for i in range(8)),
            Request("in prefill", prompt(30, 200), 10, arrive=4, abort_at=6),
            Request("waiting", prompt(31, 200), 10, arrive=4, abort_at=5),
        ],
        chunk=48,
        max_running=6,
        page=page,
    )


def retracted(page: int, radix: bool = True) -> Scenario:
    """More budget than cache: a compressed request loses its slots, is computed again and evicted anew."""
    return Scenario(
        "llama",
        plugin("llama", "random", budget=96, interval=16),
        requests=[
            Request("old0", prompt(0, 20), 120),
            Request("old1", prompt(1, 20), 120, arrive=1),
            Request("long", prompt(2, 130), 90, arrive=20),
            Request("late", prompt(3, 50), 70, arrive=45),
        ],
        tokens=272,
        max_model_len=256,
        page=page,
        radix=radix,
        on_step=overcommit,
    )


def check_retracted(run: Run) -> None:
    """Some request had rounds before and after it was retracted."""
    assert run.preemptions >= 1
    assert any(
        len(o.rounds.get(0, [])) >= 1 and len(o.rounds.get(1, [])) >= 1 for o in run.outcomes.values()
    ), {name: {i: len(r) for i, r in o.rounds.items()} for name, o in run.outcomes.items()}


LONG = prompt(5, 500)


def beyond_the_pool(page: int, radix: bool = True, overlap: bool = True) -> Scenario:
    """Long ones after one another, with the same beginning, beside short ones that decode; one is aborted.

    The beginning is in the radix tree: as much of it is used as leaves room for the rest.
    """
    return Scenario(
        "llama",
        plugin("llama", "keydiff"),
        requests=[
            Request("whole", LONG[:190], 5, budget=0),
            Request("short", LONG[:40] + prompt(1, 5), 40),
            Request("long", LONG, 12, arrive=4),
            Request("gone", prompt(7, 400), 10, arrive=6, abort_at=22),
            Request("twin", LONG[:300] + prompt(6, 100), 12, arrive=30),
            Request("grows", prompt(2, 30), 60, arrive=31),
        ],
        tokens=256,
        chunk=48,
        max_model_len=600,
        page=page,
        radix=radix,
        overlap=overlap,
    )


def check_beyond_the_pool(run: Run) -> None:
    """Rounds ran between the chunks of the long ones, and what they share was used."""
    assert run["gone"].finish == "abort"
    for name in ("long", "twin"):
        rounds = run[name].rounds[0]
        assert rounds[0].computed < 200
        assert all(this.n_keep == 64 for this in rounds)
        assert sum(this.computed < len(run[name].request.prompt) for this in rounds) >= 4
    if run.scenario.radix:
        assert run["long"].cached_tokens == (141 if run.scenario.page == 1 else 96)


def resumed_beyond_the_pool(page: int) -> Scenario:
    """Retracted twice, at last with more than the pool holds; it resumes beside another that runs."""
    return Scenario(
        "llama",
        plugin("llama", "random"),
        requests=[Request("one", prompt(0, 20), 290), Request("two", prompt(1, 30), 280, arrive=1)],
        tokens=240,
        chunk=32,
        max_model_len=400,
        page=page,
        on_step=RetractAt(120, 255),
    )


def check_resumed_beyond_the_pool(run: Run) -> None:
    """Each time it resumed with rounds between the chunks of what it had."""
    assert run.preemptions == 2
    again = run["two"]
    had = [len(again.request.prompt) + again.incarnation.index(i) for i in (1, 2)]
    assert had[1] > 240
    for incarnation, tokens in enumerate(had, 1):
        assert sum(this.computed < tokens for this in again.rounds[incarnation]) >= 1
