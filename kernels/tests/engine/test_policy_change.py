"""The policy changes while requests run: at one step, for all of them, acknowledged with that step's number."""

from __future__ import annotations

from statistics import median

import pytest

from .driver import Driver
from .policies import document
from .rig import check, prompt, run
from .scenario import Request, Scenario

pytestmark = pytest.mark.engine

SECOND_AT, THIRD_AT = 25, 50


def change(driver: Driver) -> None:
    """Another score, then another budget."""
    if driver.step == SECOND_AT:
        driver.set_policy_and_wait(document("keydiff", budget=64))
    if driver.step == THIRD_AT:
        driver.set_policy_and_wait(document("streaming", budget=48, interval=4))


def collect(driver: Driver) -> dict[str, list]:
    """What the engine told the control plane."""
    driver.wait_for_events(len([r for o in driver.outcomes.values() for rs in o.rounds.values() for r in rs]))
    return {"refusals": driver.control.refusals, "events": driver.control.events}


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_change_in_mid_flight(runner: str) -> None:
    requests = [
        Request("early", prompt(1, 50), 75),
        Request("late", prompt(2, 40), 55, arrive=20),
        Request("own", prompt(3, 50), 60, arrive=10, budget=80),
    ]
    result = run(
        Scenario(
            "llama",
            runner,
            control=document("random", budget=96, interval=16),
            requests=requests,
            on_step=change,
            on_finish=collect,
        )
    )
    check(result, rounds=10)
    revisions = [revision for revision, _ in result.acks]
    assert revisions == [1, 2, 3]
    assert not result.extra["refusals"]
    kept = {name: [r.n_keep for r in o.rounds[0]] for name, o in result.outcomes.items()}
    assert kept["early"][0] == 64
    assert kept["early"][-1] == 48
    assert kept["late"][-1] == 48
    assert set(kept["own"]) == {80}
    # The events tell the same story as the cache.
    rounds = [e for e in result.extra["events"] if type(e).__name__ == "RoundEvent"]
    assert len(rounds) == result.rounds
    steps = dict(result.acks)
    for event in rounds:
        assert event.step >= steps[event.revision]
        assert event.revision == max(r for r, step in steps.items() if step <= event.step)


def refuse_one(driver: Driver) -> None:
    """A policy that cannot work here, then one that can."""
    if driver.step == 30:
        driver.set_policy(document("keydiff", budget=40))
        driver.wait_for(lambda: len(driver.control.refusals) == 1)
    if driver.step == 40:
        driver.set_policy(document("triattention"))
        driver.wait_for(lambda: len(driver.control.refusals) == 2)


def test_refused_policy_leaves_the_last_in_force() -> None:
    result = run(
        Scenario(
            "llama",
            "v1",
            control=document("random"),
            requests=[Request("a", prompt(1, 50), 75)],
            on_step=refuse_one,
            on_finish=collect,
        )
    )
    check(result, each=5)
    assert [revision for revision, _ in result.acks] == [1]
    refusals = result.extra["refusals"]
    assert [(r.revision, r.field_) for r in refusals] == [(2, "budget"), (3, "statistics")]
    assert {r.n_keep for r in result["a"].rounds[0]} == {64}


class Often:
    """Sends a policy every few steps without waiting, and notes the last step that had begun."""

    EVERY, LAST = 6, 96

    def __init__(self) -> None:
        self.sent: dict[int, int] = {}

    def __call__(self, driver: Driver) -> None:
        if 0 < driver.step < self.LAST and driver.step % self.EVERY == 0:
            budget = 64 + driver.step % 4 * 8
            revision = driver.set_policy({**document("keydiff", budget=budget), "name": f"p{driver.step}"})
            self.sent[revision] = driver.scheduler.triattn.totals.step


def steps_to_effect(driver: Driver) -> list[int]:
    """Steps from sending to the first under the policy: 1 is the very next."""
    sent = driver.scenario.on_step.sent
    driver.wait_for(lambda: max(sent) in dict(driver.control.acks))
    acks = dict(driver.control.acks)
    return [acks[revision] - step for revision, step in sent.items() if revision in acks]


def test_a_loaded_engine_changes_within_two_steps() -> None:
    result = run(
        Scenario(
            "llama",
            "v1",
            control=document("keydiff"),
            requests=[Request(f"r{i}", prompt(i, 40), 80) for i in range(16)],
            on_step=Often(),
            on_finish=steps_to_effect,
            log_probs=False,
            check_steps=False,
        )
    )
    assert result.rounds >= 60
    assert len(result.extra) >= 10
    assert median(result.extra) <= 2
    print("steps to effect:", sorted(result.extra), f"{result.seconds:.1f} s, {result.steps} steps")
