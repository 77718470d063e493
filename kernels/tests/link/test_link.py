"""EngineLink against a ROUTER played by the test; test/round-trip.test.ts has the real control plane."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triattn import wire
from triattn.config import preset
from triattn.errors import ConfigError
from triattn.link import EngineLink, LinkRejected, LinkTimeout, PolicyRefused
from triattn.link_events import EventQueue

from .peer import HELLO, Control, eventually, started


def test_first_policy(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect()
    assert control.receive() == HELLO
    control.policy(1, budget=512)
    policy = link.wait_for_policy(5)
    assert (policy.revision, policy.policy.budget) == (1, 512)
    assert control.receive() == wire.Ack(revision=1, step=1)
    assert link.connected


def test_nobody_there(connect: Callable[..., EngineLink]) -> None:
    with pytest.raises(LinkTimeout, match="TRIATTN_SOCKET"):
        connect().wait_for_policy(0.05)


def test_rejected(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect()
    control.receive(wire.Hello)
    control.send(wire.Rejected(message="protocol 9 is spoken here"))
    with pytest.raises(LinkRejected, match="protocol 9"):
        link.wait_for_policy(5)


def refuse_small(policy: wire.SetPolicy) -> wire.Refusal | None:
    if policy.policy.budget >= 256:
        return None
    return wire.Refusal(
        revision=policy.revision, field_="budget", value="64", remedy="at least 256", message="too small"
    )


def test_first_policy_refused(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect(validate=refuse_small)
    control.receive(wire.Hello)
    control.policy(1, budget=64)
    with pytest.raises(PolicyRefused, match="budget = 64: at least 256"):
        link.wait_for_policy(5)
    assert control.receive().remedy == "at least 256"


def test_refused_policy_is_never_polled(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect(validate=refuse_small)
    started(control, link)
    control.policy(2, budget=64)
    assert control.receive(wire.Refusal).revision == 2
    assert link.poll_policy(2) is None
    control.policy(3, budget=300)
    eventually(lambda: link._pending is not None)
    assert link.poll_policy(3).revision == 3


def test_check_that_raises_refuses(control: Control, connect: Callable[..., EngineLink]) -> None:
    def broken(policy: wire.SetPolicy) -> None:
        raise KeyError("head_dim")

    connect(validate=broken)
    control.receive(wire.Hello)
    control.policy(1)
    assert "head_dim" in control.receive(wire.Refusal).message


def test_poll_returns_the_newest_once(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect(idle=60)
    started(control, link)
    for revision in (2, 3, 4):
        control.policy(revision, seed=revision)
    eventually(lambda: link._pending is not None and link._pending.revision == 4)
    assert link.poll_policy(2).revision == 4
    assert link.poll_policy(3) is None


def test_idle_engine_acknowledges_for_the_next_step(
    control: Control, connect: Callable[..., EngineLink]
) -> None:
    link = connect()
    started(control, link)
    link.poll_policy(41)
    control.policy(2)
    assert control.receive(wire.Ack) == wire.Ack(revision=2, step=42)
    assert link.poll_policy(42).revision == 2
    link.ack(2, 42)
    link.report(None)  # nothing
    with pytest.raises(AssertionError):
        control.receive(wire.Ack, timeout=0.1)


def test_an_engine_that_has_run_nothing_acknowledges_for_its_first_step(
    control: Control, connect: Callable[..., EngineLink]
) -> None:
    link = connect()
    control.receive(wire.Hello)
    control.policy(1)
    link.wait_for_policy(5)
    for revision in (1, 2, 3):
        if revision > 1:
            control.policy(revision)
        assert control.receive(wire.Ack) == wire.Ack(revision=revision, step=1)
    assert link.poll_policy(1).revision == 3


def test_promise_for_the_next_step_is_kept(control: Control, connect: Callable[..., EngineLink]) -> None:
    """The race that poll_policy guards: the link promises step + 1 after this step has announced itself."""
    link = connect()
    started(control, link)
    link.poll_policy(7)
    control.policy(2)
    assert control.receive(wire.Ack).step == 8
    assert link.poll_policy(7) is None
    assert link.poll_policy(8).revision == 2


def test_events_are_numbered_and_batched(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect()
    started(control, link)
    sent = [wire.SkipEvent(step=2**62 + i, request=f"r{i}", reason="x") for i in range(1000)]
    for event in sent:
        link.emit(event)
    received: list[wire.EngineEvent] = []
    while len(received) < 1000:
        batch = control.receive(wire.Events)
        assert batch.first == len(received)
        received += batch.events
    assert received == sent
    assert control.receive(wire.Heartbeat).next_event == 1000


def test_full_queue_drops_the_oldest(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect(event_capacity=10, flush=0.2)
    control.receive(wire.Hello)
    for i in range(25):
        link.emit(wire.SkipEvent(step=i, request="r", reason="x"))
    batch = control.receive(wire.Events)
    assert (batch.first, len(batch.events), batch.events[0].step) == (15, 10, 15)
    assert link.events_dropped == 15


def test_event_larger_than_a_frame(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect(flush=0.2)
    control.receive(wire.Hello)
    for size in (10, 2_000_000, 10):
        link.emit(wire.SkipEvent(step=1, request="r" * size, reason="x"))
    assert [control.receive(wire.Events).first for _ in range(2)] == [0, 2]
    assert link.events_dropped == 1


def counters(step: int) -> wire.Counters:
    zero = {name: 0 for name in wire.Counters.__struct_fields__}
    return wire.Counters(**{**zero, "step": step})


def test_newest_counters(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect(flush=0.1)
    started(control, link)
    for step in range(5):
        link.report(counters(step))
    assert control.receive(wire.CountersReport).counters.step == 4


def test_new_control_plane_at_the_same_address(
    endpoint: str, control: Control, connect: Callable[..., EngineLink]
) -> None:
    link = connect()
    started(control, link)
    link.report(counters(3))
    control.receive(wire.CountersReport)
    control.close()
    eventually(lambda: not link.connected)
    link.emit(wire.SkipEvent(step=1, request="r", reason="while away"))
    assert link.poll_policy(2) is None
    successor = Control(endpoint)
    try:
        hello = successor.receive()
        assert isinstance(hello, wire.Hello)
        assert (hello.revision, hello.next_event) == (1, 0)
        assert successor.receive(wire.Events).events[0].reason == "while away"
        assert successor.receive(wire.CountersReport).counters.step == 3
        successor.policy(1)  # the policy in force: acknowledged again, not polled again
        assert successor.receive(wire.Ack) == wire.Ack(revision=1, step=1)
        assert link.poll_policy(3) is None
        successor.policy(2)
        eventually(lambda: link._pending is not None)
        assert link.poll_policy(4).revision == 2
    finally:
        successor.close()


def test_identify(control: Control, connect: Callable[..., EngineLink]) -> None:
    connect()
    control.receive(wire.Hello)
    control.send(wire.Identify())
    assert control.receive() == HELLO


def test_malformed_frames_are_dropped(
    control: Control, connect: Callable[..., EngineLink], caplog: pytest.LogCaptureFixture
) -> None:
    link = connect()
    control.receive(wire.Hello)
    bad = [
        b"",
        b"\xc1",
        b"\x91" * 100_000,
        msgspec.msgpack.encode({"type": "policy", "revision": 0}),
        msgspec.msgpack.encode({"type": "rejected", "message": "x", "more": 1}),
        msgspec.msgpack.encode({"type": "unheard of"}),
        b"x" * 1_500_000,
    ]
    with caplog.at_level(logging.WARNING, "triattn.link"):
        for frame in bad:
            control.send(frame)
        eventually(lambda: link.frames_dropped == len(bad))
    assert len(caplog.records) == 1
    control.policy(1)
    assert link.wait_for_policy(5).revision == 1


def test_goodbye(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect(flush=5)
    control.receive(wire.Hello)
    link.emit(wire.SkipEvent(step=1, request="r", reason="last words"))
    begun = time.monotonic()
    link.close("shutdown")
    assert time.monotonic() - begun < 1
    assert control.receive(wire.Events).events[0].reason == "last words"
    assert control.receive() == wire.Bye(reason="shutdown")
    link.close("again")
    link.emit(wire.SkipEvent(step=2, request="r", reason="after the end"))
    assert not any(thread.name == "triattn-link" for thread in threading.enumerate())


def test_address_that_is_none() -> None:
    with pytest.raises(ConfigError, match="TRIATTN_SOCKET"):
        EngineLink("carrier-pigeon://roof", HELLO)


def test_long_refusal_is_shortened(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect()
    started(control, link)
    link.refuse(2, "policy.name", "x" * 2_000_000, "shorter", "too long")
    assert len(control.receive(wire.Refusal).value) == 2000


def test_promised_steps_are_kept_under_races(control: Control, connect: Callable[..., EngineLink]) -> None:
    """Acknowledging at once, always for a step to come, against a scheduler that polls all the time."""
    link = connect(idle=0)
    started(control, link)
    used: dict[int, int] = {}
    stop = threading.Event()

    def schedule() -> None:
        step = 1
        while not stop.is_set():
            step += 1
            policy = link.poll_policy(step)
            if policy is not None:
                used[policy.revision] = step
                link.ack(policy.revision, step)

    scheduler = threading.Thread(target=schedule)
    scheduler.start()
    said: dict[int, int] = {}
    try:
        for revision in range(2, 300):
            control.policy(revision)
            if revision % 3 == 0:  # otherwise the next one is on its heels
                while revision not in said:
                    ack = control.receive(wire.Ack)
                    said[ack.revision] = ack.step
                eventually(lambda: used.get(revision) == said[revision])  # noqa: B023
    finally:
        stop.set()
        scheduler.join()
    assert len(said) >= 100
    assert all(said[revision] == step for revision, step in used.items() if revision in said)


def test_random_frames(control: Control, connect: Callable[..., EngineLink]) -> None:
    link = connect()
    control.receive(wire.Hello)
    control.policy(1)
    link.wait_for_policy(5)
    source = random.Random(1)
    good = msgspec.msgpack.encode(wire.SetPolicy(revision=2, policy=preset("blend"), statistics="/s"))
    for index in range(3000):
        frame = bytearray(good if index % 2 else source.randbytes(source.randrange(200)))
        for _ in range(source.randrange(1, 4) if index % 2 else 0):
            frame[source.randrange(len(frame))] = source.randrange(256)
        control.send(bytes(frame))
    control.send(wire.Identify())
    control.receive(wire.Hello)
    assert link.frames_dropped > 2000
    assert link.connected


@given(
    capacity=st.integers(1, 8),
    first=st.integers(0, 2**62),
    steps=st.lists(st.one_of(st.none(), st.integers(1, 10)), max_size=60),
)
def test_event_queue(capacity: int, first: int, steps: list[int | None]) -> None:
    """Against a list: None appends, a number takes up to so many."""
    queue = EventQueue(capacity, first)
    model: list[tuple[int, wire.EngineEvent]] = []
    number, dropped = first, 0
    for step in steps:
        if step is None:
            event = wire.SkipEvent(step=number, request="r", reason="x")
            queue.append(event)
            model.append((number, event))
            number += 1
            if len(model) > capacity:
                model.pop(0)
                dropped += 1
        else:
            taken, model = model[:step], model[step:]
            batch = queue.take(step)
            if batch is None:
                assert not taken
            else:
                assert list(enumerate(batch.events, batch.first)) == taken
        assert queue.dropped == dropped
        assert queue.first == (model[0][0] if model else number)
