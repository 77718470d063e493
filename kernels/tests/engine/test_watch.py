"""Watching: the state of requests, what a request keeps, times; and that nothing a user wrote leaves the engine."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
import pytest

from .driver import Driver
from .policies import document
from .rig import check, prompt, run
from .scenario import Request, Run, Scenario

pytestmark = pytest.mark.engine

FROM, UNTIL = 10, 60


class Watcher:
    """Watches one request for some steps, in the name that its client knows."""

    def __init__(self) -> None:
        self.before = self.after = -1

    def __call__(self, driver: Driver) -> None:
        from triattn import wire

        link = driver.scheduler.triattn.link
        if driver.step == FROM:
            self.before = self._reports(driver)
            driver.control.post(wire.Watch(seconds=60, requests=True, kept="seen"))
            driver.wait_for(lambda: link.watch is not None)
        if FROM < driver.step < UNTIL and driver.step % 10 == 0:
            time.sleep(0.26)  # reports are not sent more often
        if driver.step == UNTIL:
            driver.control.post(wire.Watch(seconds=0, requests=True, kept="seen"))
            driver.wait_for(lambda: link.watch is None)
            time.sleep(0.2)
            self.after = self._reports(driver)

    @staticmethod
    def _reports(driver: Driver) -> int:
        return sum(
            type(m).__name__ in ("RequestsReport", "KeptReport") for m in list(driver.control.messages)
        )


def finish(driver: Driver) -> dict[str, Any]:
    """What the engine sent, and how it calls its requests."""
    from triattn import wire

    watcher, control = driver.scenario.on_step, driver.control
    driver.wait_for(lambda: control.of(wire.CountersReport)[-1].counters.running == 0)
    return {
        "before": watcher.before,
        "after": watcher.after,
        "requests": control.of(wire.RequestsReport),
        "kept": control.of(wire.KeptReport),
        "counters": [m.counters for m in control.of(wire.CountersReport)],
        "frames": control.frames,
        "names": driver._internal,
    }


def scenario(runner: str, **changes: Any) -> Scenario:
    """Two requests, one of them watched; a rule for the other."""
    return Scenario(
        "llama",
        runner,
        control={
            "policy": document("keydiff", selection="per_layer_per_head"),
            "rules": [{"name": "low", "tags": ["low"], "budget": 80}],
        },
        requests=[
            Request("seen", prompt(1, 40), 75),
            Request("other", prompt(2, 30), 60, tags="low,batch", priority=3),
        ],
        on_step=Watcher(),
        on_finish=finish,
        **changes,
    )


def check_reports(result: Run) -> None:
    """Reports came while they were asked for, and agree with the cache."""
    extra = result.extra
    assert extra["before"] == 0
    assert extra["after"] == len(extra["requests"]) + len(extra["kept"])
    spec = result.scenario.spec
    names = extra["names"]

    rounds = {r.computed: r for r in result["seen"].rounds[0]}
    assert len(extra["kept"]) >= 2
    for report in extra["kept"]:
        assert report.request == names["seen"]
        this = rounds[report.computed]
        assert (report.layers, report.kv_heads) == (spec.layers, spec.kv_heads)
        assert report.bins == min(64, report.computed)
        assert report.resident == this.n_keep
        shape = (spec.layers, spec.kv_heads, report.bins)
        counts = np.frombuffer(report.counts, "<u2").reshape(shape)
        expected = np.zeros(shape, int)
        for layer, head in np.ndindex(*shape[:2]):
            np.add.at(expected[layer, head], this.kept[layer, head] * report.bins // report.computed, 1)
        assert (counts == expected).all()
        assert (counts.sum(-1) == this.n_keep).all()

    assert len(extra["requests"]) >= 2
    for report in extra["requests"]:
        assert report.omitted == 0
        states = {state.request: state for state in report.requests}
        assert set(states) == set(names.values())
        seen, other = states[names["seen"]], states[names["other"]]
        assert (seen.rule, seen.budget, seen.tags, seen.prompt) == (None, 64, [], 40)
        assert (other.rule, other.budget, other.tags) == ("low", 80, ["low", "batch"])
        assert other.priority == 3
        for state in (seen, other):
            assert state.state == "running"
            assert state.resident == state.computed - state.evicted_total
    assert any(state.rounds for report in extra["requests"] for state in report.requests)

    last = extra["counters"][-1]
    assert last.rounds == result.rounds
    assert last.round_seconds > 0
    assert last.stall_seconds == last.plan_seconds + last.round_seconds


@pytest.mark.parametrize(
    ("runner", "changes"),
    [
        ("v1", {}),
        ("v1", {"async_scheduling": True}),
        ("v1", {"tp": 2}),
        ("v2", {"async_scheduling": True}),
    ],
    ids=["v1", "v1-async", "v1-tp", "v2-async"],
)
def test_watch(runner: str, changes: dict[str, Any]) -> None:
    result = run(scenario(runner, **changes))
    check(result, rounds=6)
    check_reports(result)
    if runner == "v1" and not changes:
        check_frames(result)


def check_frames(result: Run) -> None:
    """No frame carries tokens, text or anything else of a request but its id, tags and numbers."""
    names, spec = result.extra["names"], result.scenario.spec
    known = {"seen", "other", "low", "batch", *names.values()}
    ids = set(names.values())
    lists_allowed = {"events", "requests", "tags", "capabilities"}

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, (*path, key))
        elif isinstance(value, list):
            assert path[-1] in lists_allowed, path
            assert not any(isinstance(item, int) for item in value), path
            for item in value:
                walk(item, path)
        elif isinstance(value, str) and path[0] in ("requests", "kept", "events"):
            enumerated = path[-1] in ("type", "kind", "state", "reason")
            assert enumerated or value in known, (path, value)
        elif isinstance(value, bytes):
            assert path[-1] == "counts"
            assert len(value) == 2 * 64 * spec.layers * spec.kv_heads or len(value) % 2 == 0

    kinds = set()
    for frame in result.extra["frames"]:
        message = msgspec.msgpack.decode(frame)
        kinds.add(message["type"])
        for key, value in message.items():
            walk(value, (message["type"], key))
        for outcome in result.outcomes.values():
            for width in (1, 2, 4, 8):
                tokens = np.array(outcome.request.prompt[:8] + outcome.tokens[:0], f"<u{width}").tobytes()
                assert tokens not in frame
    assert {"hello", "ack", "events", "counters", "requests", "kept"} <= kinds
    assert ids
