"""Reports that a control plane asks for: leases, the newest only, nothing once nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from triattn import wire
from triattn.link import EngineLink
from triattn.link_socket import MAX_FRAME
from triattn.link_watch import Watching

from .peer import Control, eventually, started


def state(name: str) -> wire.RequestState:
    return wire.RequestState(
        request=name,
        state="running",
        priority=0,
        tags=[],
        rule=None,
        prompt=1,
        computed=2,
        resident=2,
        budget=0,
        evicted_total=0,
        rounds=0,
    )


def requests(step: int, *names: str) -> wire.RequestsReport:
    return wire.RequestsReport(step=step, requests=[state(name) for name in names], omitted=0)


def kept(step: int) -> wire.KeptReport:
    return wire.KeptReport(
        request="r",
        step=step,
        computed=100,
        resident=10,
        layers=1,
        kv_heads=1,
        bins=4,
        counts=b"\1\0\2\0\3\0\4\0",
    )


def quiet(control: Control, kind: type, seconds: float = 0.1) -> None:
    with pytest.raises(AssertionError):
        control.receive(kind, timeout=seconds)


def watch(seconds: int = 60, requests: bool = True, kept: str | None = None) -> wire.Watch:
    return wire.Watch(seconds=seconds, requests=requests, kept=kept)


def test_reports_leave_while_they_are_watched(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect()
    started(control, link)
    assert link.watch is None
    link.report_requests(requests(3, "a"))
    link.report_kept(kept(3))
    quiet(control, wire.RequestsReport)
    control.send(watch(kept="r"))
    eventually(lambda: link.watch is not None)
    link.report_requests(requests(5, "a", "b"))
    assert control.receive(wire.RequestsReport) == requests(5, "a", "b")
    link.report_kept(kept(5))
    assert control.receive(wire.KeptReport) == kept(5)
    quiet(control, wire.KeptReport)
    # What one request kept is not shown to whoever watches another.
    control.send(watch(kept=None))
    eventually(lambda: link.watch is not None and link.watch.kept is None)
    link.report_kept(kept(5))
    control.send(watch(kept="s"))
    eventually(lambda: link.watch is not None and link.watch.kept == "s")
    quiet(control, wire.KeptReport)
    control.send(watch(0))
    eventually(lambda: link.watch is None)
    link.report_requests(requests(6))
    link.report_kept(kept(6))
    quiet(control, wire.RequestsReport)


def test_each_kind_is_asked_for_by_itself(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect()
    started(control, link)
    control.send(watch(requests=False, kept="r"))
    eventually(lambda: link.watch is not None)
    link.report_requests(requests(5, "a"))
    link.report_kept(kept(5))
    assert control.receive(wire.KeptReport).step == 5
    quiet(control, wire.RequestsReport)
    control.send(watch(requests=False))
    eventually(lambda: link.watch is None)


def test_a_lease_runs_out(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect()
    started(control, link)
    begun = time.monotonic()
    control.send(watch(1))
    eventually(lambda: link.watch is not None)
    eventually(lambda: link.watch is None)
    assert time.monotonic() - begun >= 1


def test_an_idle_engine_answers_with_what_it_said_last(
    control: Control, connect: Callable[..., EngineLink]
) -> None:
    link = connect()
    control.receive(wire.Hello)
    control.policy(1)
    link.wait_for_policy(5)
    control.send(watch())
    assert control.receive(wire.RequestsReport) == requests(0)
    control.send(watch(0))
    link.poll_policy(7)
    link.report_requests(requests(7))
    eventually(lambda: link.watch is None)
    control.send(watch())
    assert control.receive(wire.RequestsReport) == requests(7)
    control.send(watch(0))
    link.poll_policy(8)  # busy again: what it said is no longer so
    eventually(lambda: link.watch is None)
    control.send(watch())
    quiet(control, wire.RequestsReport)


def test_a_report_larger_than_a_frame_is_cut_and_counted(
    control: Control, connect: Callable[..., EngineLink]
) -> None:
    link = connect()
    started(control, link)
    control.send(watch(kept="r"))
    eventually(lambda: link.watch is not None)
    names = [f"{i}-" + "x" * 500 for i in range(4096)]
    link.report_requests(requests(5, *names))
    report = control.receive(wire.RequestsReport)
    assert 0 < len(report.requests) < 4096
    assert len(report.requests) + report.omitted == 4096
    # What no frame can hold, or no encoding express, is given up, and the link goes on.
    link.report_requests(requests(6, "y" * 2 * MAX_FRAME))
    assert control.receive(wire.RequestsReport).omitted == 1
    link.report_requests(requests(7, "\ud800"))
    assert control.receive(wire.RequestsReport).omitted == 1
    link.emit(wire.SkipEvent(step=2**70, request="r", reason="no such number"))
    link.emit(wire.SkipEvent(step=8, request="r", reason="x"))
    assert control.receive(wire.Events).events[0].step == 8
    assert link.events_dropped == 1
    link.report_kept(kept(9))
    assert control.receive(wire.KeptReport).step == 9


def test_nothing_is_kept_for_a_watch_that_ended() -> None:
    watching = Watching()
    watching.grant(watch(60, requests=False, kept=None), 1)
    assert watching.current is None
    watching.grant(watch(60, kept="r"), 1)
    watching.report_kept(kept(2))
    assert [type(m) for m in watching.unsent()] == [wire.KeptReport]
    assert not list(watching.unsent())
