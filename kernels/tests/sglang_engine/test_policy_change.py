"""The policy changes while requests run: at one step, on every rank, acknowledged with that step's number."""

from __future__ import annotations

import pytest
from engine.policies import document
from engine.scenario import Request

from .driver import Driver
from .rig import check, prompt, run
from .scenario import Scenario

pytestmark = pytest.mark.engine

SECOND_AT, THIRD_AT = 25, 50


def change(driver: Driver) -> None:
    """Another score, then another budget; one that cannot work in between."""
    sent = getattr(driver, "sent", set())
    driver.sent = sent
    if driver.step >= SECOND_AT and 2 not in sent:
        sent.add(driver.set_policy(document("keydiff", budget=64)))
        driver.wait_for(lambda: driver.control.messages and driver.hooks.reports.link._pending is not None)
    if driver.step >= THIRD_AT and 3 not in sent:
        sent.add(driver.set_policy(document("keydiff", budget=12)))
        driver.wait_for(lambda: len(driver.control.refusals) == 1)
        sent.add(driver.set_policy(document("streaming", budget=48, interval=4)))
        driver.wait_for(lambda: driver.hooks.reports.link._pending is not None)


def collect(driver: Driver) -> dict[str, list]:
    """What the engine told the control plane."""
    rounds = len([r for o in driver.outcomes.values() for rs in o.rounds.values() for r in rs])
    driver.wait_for(lambda: sum(type(e).__name__ == "RoundEvent" for e in driver.control.events) >= rounds)
    return {"refusals": driver.control.refusals, "events": driver.control.events}


@pytest.mark.parametrize("tp", [1, 2])
def test_change_in_mid_flight(tp: int) -> None:
    requests = [
        Request("early", prompt(1, 50), 75),
        Request("late", prompt(2, 40), 55, arrive=20),
        Request("own", prompt(3, 50), 60, arrive=10, budget=80),
    ]
    result = run(
        Scenario(
            "llama",
            control=document("random", budget=96, interval=16),
            requests=requests,
            on_step=change,
            on_finish=collect,
            tp=tp,
        )
    )
    check(result, rounds=10)
    assert [revision for revision, _ in result.acks] == [1, 2, 4]
    assert [(r.revision, r.field_) for r in result.extra["refusals"]] == [(3, "budget")]
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
