"""Rules: who gets which policy and budget, and what happens when they change while requests run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from .driver import Driver
from .policies import document
from .rig import check, prompt, run
from .scenario import Request, Run, Scenario

pytestmark = pytest.mark.engine

STREAMING = document("streaming", budget=48, interval=4)
RULES = [
    {"name": "urgent", "maxPriority": -1, "budget": 0},
    {"name": "batch", "tags": ["batch"], "policy": 0},
    {"name": "small", "tags": ["low", "eval"], "budget": 64},
]
BUDGETS_AT, NO_RULES_AT = 30, 50


class Change:
    """Budgets alone change, then the rules go. Notes what was prepared, and every batch of rounds."""

    def __init__(self) -> None:
        self.prepared: list[list[int]] = []
        self.batches: list[tuple[int, str, int]] = []

    def __call__(self, driver: Driver) -> None:
        if driver.step == 0:
            self._count(driver)
        if driver.step == BUDGETS_AT:
            self._note(driver)
            driver.set_policy_and_wait(
                document("random", budget=80, interval=8),
                rules=[*RULES[:1], {**RULES[1], "budget": 56}, *RULES[2:]],
                policies=[{**STREAMING, "name": "other"}],
            )
        if driver.step == NO_RULES_AT:
            self._note(driver)
            driver.set_policy_and_wait(document("random", budget=80, interval=8))

    def _note(self, driver: Driver) -> None:
        self.prepared.append([id(rounds) for rounds in driver.runner.triattn.rounds._rounds])

    def _count(self, driver: Driver) -> None:
        from triattn.ops.torch_rounds import TorchRounds

        original = TorchRounds.run

        def counted(rounds: Any, batch: Any) -> None:
            self.batches.append((driver.step, type(rounds.policy.terms[0][1]).__name__, batch.size))
            original(rounds, batch)

        TorchRounds.run = counted


def finish(driver: Driver) -> dict[str, Any]:
    """What the engine told, and what the hook noted."""
    driver.wait_for_events(len([r for o in driver.outcomes.values() for rs in o.rounds.values() for r in rs]))
    change = driver.scenario.on_step
    return {
        "prepared": change.prepared,
        "batches": change.batches,
        "events": [e for e in driver.control.events if type(e).__name__ == "RoundEvent"],
        "refusals": driver.control.refusals,
    }


def kept(result: Run, name: str) -> list[tuple[int, int]]:
    """(C, tokens kept) of each round."""
    return [(r.computed, r.n_keep) for r in result[name].rounds.get(0, [])]


def is_streaming(this: Any) -> bool:
    """The first four and the most recent tokens, in every layer and head."""
    expected = [*range(4), *range(this.computed - this.n_keep + 4, this.computed)]
    return bool((np.sort(this.kept, axis=-1) == expected).all())


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_rules_in_mid_flight(runner: str) -> None:
    requests = [
        Request("plain", prompt(1, 40), 75),
        Request("batch", prompt(2, 40), 92, tags="batch,low"),
        Request("batch2", prompt(3, 40), 75, tags=["low", "batch"]),
        Request("own", prompt(4, 40), 60, tags="batch", budget=72),
        Request("small", prompt(5, 40), 45, tags="eval, low"),
        Request("urgent", prompt(6, 40), 75, tags="batch", priority=-1),
    ]
    result = run(
        Scenario(
            "llama",
            runner,
            control={
                "policy": document("random", budget=96, interval=8),
                "rules": RULES,
                "policies": [STREAMING],
            },
            requests=requests,
            on_step=Change(),
            on_finish=finish,
        )
    )
    check(result, rounds=20)
    assert not result.extra["refusals"]
    steps = dict(result.acks)
    assert sorted(steps) == [1, 2, 3]

    budgets = {name: [n for _, n in kept(result, name)] for name in result.outcomes}
    assert set(budgets["plain"]) == {80}  # 96 is never reached before it falls
    assert budgets["batch"][0] == 48
    assert set(budgets["batch"]) == {48, 56, 80}
    assert budgets["batch"] == sorted(budgets["batch"])
    assert budgets["batch2"] == [n for n in budgets["batch"] if n < 80]
    assert set(budgets["own"]) == {72}  # its own budget, whatever rule and policy
    assert set(budgets["small"]) == {64}
    # Never compressed as long as the rule holds.
    assert set(budgets["urgent"]) == {80}
    assert all(computed >= 40 + NO_RULES_AT - 2 for computed, _ in kept(result, "urgent"))

    # Policies score their own requests: streaming keeps the ends, random does not.
    for name in ("batch", "batch2"):
        under = [r for r in result[name].rounds[0] if r.n_keep in (48, 56)]
        assert len(under) >= 5
        assert all(is_streaming(r) for r in under)
    assert not any(is_streaming(r) for r in result["plain"].rounds[0])

    # Every round by the revision in force, for as long as the events say.
    for event in result.extra["events"]:
        assert event.revision == max(r for r, step in steps.items() if step <= event.step)

    # A change of budgets, intervals and names prepares nothing anew.
    first, second = result.extra["prepared"]
    assert first == second
    assert len(set(first)) == 2
    # One batch a policy and step, however many requests.
    batches = result.extra["batches"]
    if batches:  # the V2 runner's rounds are Triton's, or torch's as here
        assert len({(step, kind) for step, kind, _ in batches}) == len(batches)
        assert max(size for *_, size in batches) >= 2


def refuse(driver: Driver) -> None:
    """Rules that cannot work on this engine."""
    if driver.step != 5:
        return
    bad = [
        {"rules": [{"name": "a", "budget": 40}]},
        {"rules": [{"name": "a", "policy": 0}]},
        {"rules": [{"name": "a", "policy": 0}], "policies": [document("triattention")]},
        {"rules": [{"name": "a", "budget": 8192}]},
        {"rules": [{"name": "a", "budget": 0}]},
        {
            "policies": [document("random", budget=64, countPrompt=False)],
            "rules": [{"name": "a", "policy": 0}],
        },
    ]
    for number, more in enumerate(bad, 1):
        driver.set_policy(document("random"), **more)
        driver.wait_for(lambda n=number: len(driver.control.refusals) == n)


def refusals(driver: Driver) -> list[tuple[str, str, str]]:
    """Field, value and remedy of each."""
    return [(r.field_, r.value, r.remedy) for r in driver.control.refusals]


def test_rules_that_cannot_work_are_refused() -> None:
    result = run(
        Scenario(
            "llama",
            "v1",
            control=document("random"),
            requests=[
                Request("a", prompt(1, 30), 60),
                Request("bad", prompt(1, 30), 5, tags="x" * 65, refused=True),
                Request("worse", prompt(1, 30), 5, tags=7, refused=True),
            ],
            on_step=refuse,
            on_finish=refusals,
            blocks=20,
            max_model_len=2048,
            # What the engine prepares for while it starts: a cache smaller than the longest request.
            environ={"TRIATTN_POLICY": json.dumps(document("random"))},
        )
    )
    check(result, rounds=2)
    assert "triattn_tags" in result["bad"].error
    assert "must be up to 16 tags" in result["worse"].error
    found = result.extra
    assert [(field, value) for field, value, _ in found] == [
        ("rules[0].budget", "40"),
        ("rules[0].policy", "0"),
        ("statistics", "None"),
        ("rules[0].budget", "8192"),
        ("rules[0].budget", "0"),
        ("policies[0].countPrompt", "False"),
    ]
    assert "at least 44" in found[0][2]
    assert "leaves no room in a cache of" in found[3][2]


def widen(driver: Driver) -> None:
    """A policy whose rounds come so seldom that a budget checked before would not fit the cache."""
    if driver.step == 5:
        driver.set_policy_and_wait(document("random", interval=100))


def test_a_budget_that_no_longer_fits_the_cache_is_lowered() -> None:
    """Otherwise the request would wait for ever, and all behind it."""
    first = document("random", budget=200)
    result = run(
        Scenario(
            "llama",
            "v1",
            control=first,
            requests=[
                Request("before", prompt(1, 30), 30),
                Request("own", prompt(2, 100), 280, budget=200, arrive=8),
                Request("short", prompt(3, 100), 240, budget=200, arrive=8),
                Request("behind", prompt(4, 30), 30, arrive=9),
            ],
            on_step=widen,
            blocks=12,
            max_model_len=1024,
            environ={"TRIATTN_POLICY": json.dumps(first)},
        )
    )
    check(result, rounds=2)
    # 11 blocks of 32 tokens, less a chunk of 128 and the interval. They may have preempted each other.
    budgets = {
        name: {r.n_keep for rs in o.rounds.values() for r in rs} for name, o in result.outcomes.items()
    }
    assert budgets["own"] == {352 - 128 - 100}
    assert budgets["short"] == {200}
