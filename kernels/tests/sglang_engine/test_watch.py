"""Rules by tags and priority; the state of requests and what one of them keeps, while a control plane watches."""

from __future__ import annotations

import time

import numpy as np
import pytest
from engine.policies import document
from engine.scenario import Request

from .driver import Driver
from .rig import check, prompt, run
from .scenario import Scenario

pytestmark = pytest.mark.engine


def watch(driver: Driver) -> None:
    """Watch one request from the tenth step on."""
    from triattn import wire

    link = driver.hooks.reports.link
    if driver.step >= 10 and link.watch is None:
        driver.control.post(wire.Watch(seconds=60, requests=True, kept="seen."))
        driver.wait_for(lambda: link.watch is not None)
    if driver.step % 20 == 19:
        time.sleep(0.2)  # reports are not sent more often


def finish(driver: Driver) -> dict[str, list]:
    """What the engine sent."""
    from triattn import wire

    driver.wait_for(lambda: driver.control.of(wire.KeptReport))
    return {
        "requests": driver.control.of(wire.RequestsReport),
        "kept": driver.control.of(wire.KeptReport),
        "counters": driver.hooks.reports.counters(),
    }


@pytest.mark.parametrize("tp", [1, 2])
def test_rules_and_watching(tp: int) -> None:
    low = {"name": "low", "tags": ["low"], "budget": 80}
    result = run(
        Scenario(
            "llama",
            control={"policy": document("keydiff", selection="per_layer_per_head"), "rules": [low]},
            requests=[
                Request("seen", prompt(1, 40), 90),
                Request("other", prompt(2, 30), 90, tags="low,batch", priority=3),
            ],
            on_step=watch,
            on_finish=finish,
            tp=tp,
        )
    )
    check(result, each=3)
    assert {r.n_keep for r in result["seen"].rounds[0]} == {64}
    assert {r.n_keep for r in result["other"].rounds[0]} == {80}
    states = [state for report in result.extra["requests"] for state in report.requests]
    assert {state.request for state in states} == {"seen.", "other."}
    assert {(state.request, state.rule, state.budget) for state in states} == {
        ("seen.", None, 64),
        ("other.", "low", 80),
    }
    by_length = {r.computed: r for r in result["seen"].rounds[0]}
    assert result.extra["kept"]
    for picture in result.extra["kept"]:
        kept = by_length[picture.computed].kept
        slices = kept * picture.bins // picture.computed
        counts = [[np.bincount(head, minlength=picture.bins) for head in layer] for layer in slices]
        shape = (picture.layers, picture.kv_heads, picture.bins)
        assert np.array_equal(np.frombuffer(picture.counts, "<u2").reshape(shape), counts)
    assert result.extra["counters"].round_seconds > 0
