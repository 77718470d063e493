"""Malformed, mutated and endless messages: counted and dropped, and the link goes on.

`TRIATTN_FUZZ` multiplies the counts: 20 makes it a million malformed frames and a hundred thousand documents.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable

import msgspec

from triattn import wire
from triattn.config import check_policy, preset
from triattn.errors import ConfigError
from triattn.link import EngineLink
from triattn.link_socket import MAX_FRAME, LinkSocket
from triattn.policies import Policy
from triattn.rules import Rules

from .peer import Control, eventually, started

TIMES = float(os.environ.get("TRIATTN_FUZZ", "1"))

RULE = wire.EngineRule(name="r", min_priority=0, max_priority=9, tags=["a", "b"], budget=512, policy=0)
GOOD = [
    wire.SetPolicy(
        revision=2, policy=preset("blend"), statistics="/s", rules=[RULE], policies=[preset("random")]
    ),
    wire.Watch(seconds=60, requests=True, kept="r"),
    wire.Identify(),
    wire.Rejected(message="no"),
]
FRAMES = [msgspec.msgpack.encode(message) for message in GOOD]


def mangled(source: random.Random, frame: bytes) -> bytes:
    """A frame with bytes changed, cut out, repeated, or with none of its own."""
    kind = source.randrange(5)
    if kind == 0:
        return source.randbytes(source.randrange(120))
    changed = bytearray(frame)
    at = source.randrange(len(changed))
    if kind == 1:
        del changed[at:]
    elif kind == 2:
        changed[at:at] = changed[: source.randrange(len(changed))]
    else:
        for _ in range(source.randrange(1, 6)):
            changed[source.randrange(len(changed))] = source.randrange(256)
    return bytes(changed)


def test_malformed_frames(tmp_path_factory) -> None:
    socket = LinkSocket(f"ipc://{tmp_path_factory.mktemp('s')}/s", None)
    source = random.Random(3)
    try:
        total, read = int(50_000 * TIMES), 0
        for _ in range(total):
            message = socket._decode([mangled(source, source.choice(FRAMES))])
            read += message is not None
        assert socket.malformed == total - read > total / 2
        for frames in ([], [b"", b""], [b"\x81" * (MAX_FRAME + 1)], [b"\x91" * MAX_FRAME]):
            assert socket._decode(frames) is None
    finally:
        socket.close()


VALUES = [None, True, -1, 0, 1, 2**31, 2**53, 2**64, 1e308, float("nan"), "", "x", "\0", [], {}, [[]], b"b"]


def mutated(source: random.Random, document: object) -> object:
    """The same document with one value somewhere replaced, removed or doubled."""
    if isinstance(document, dict) and document and source.random() < 0.85:
        key = source.choice(list(document))
        if source.random() < 0.1:
            return {k: v for k, v in document.items() if k != key}
        if source.random() < 0.05:
            return {**document, f"{key}_": document[key]}
        return {**document, key: mutated(source, document[key])}
    if isinstance(document, list) and document and source.random() < 0.8:
        at = source.randrange(len(document))
        if source.random() < 0.2:
            return document * source.choice((0, 2, 40))
        return [*document[:at], mutated(source, document[at]), *document[at + 1 :]]
    if isinstance(document, int) and not isinstance(document, bool) and source.random() < 0.6:
        return document + source.choice((-1, 1, -1000, 1000, 10**6))
    return source.choice(VALUES)


def test_mutated_policies() -> None:
    """What is read at all is used or refused with its field: nothing else is raised."""
    source = random.Random(4)
    original = msgspec.to_builtins(GOOD[0])
    decoder = msgspec.msgpack.Decoder(wire.ControlMessage)
    outcomes = {"malformed": 0, "refused": 0, "used": 0}
    for _ in range(int(5_000 * TIMES)):
        document = original
        for _ in range(source.choice((1, 1, 1, 2, 5))):
            document = mutated(source, document)
        try:
            message = decoder.decode(msgspec.msgpack.encode(document))
        except (ValueError, OverflowError):
            outcomes["malformed"] += 1
            continue
        if not isinstance(message, wire.SetPolicy):
            continue
        try:
            rules = Rules.of(message, 32)
            for policy in (message.policy, *message.policies):
                check_policy(policy)
                Policy.of(policy)
        except ConfigError as error:
            assert error.field and error.remedy
            outcomes["refused"] += 1
        else:
            rules.decide(100, None, 5, ("a", "b"))
            outcomes["used"] += 1
    assert min(outcomes.values()) > 0, outcomes


def test_flood(control: Control, connect: Callable[..., EngineLink]) -> None:
    """Thousands of messages, good and bad, while the engine polls and reports: the last policy wins."""
    checked: list[int] = []
    link = connect(validate=lambda policy: checked.append(policy.revision))
    started(control, link)
    source = random.Random(5)
    used: list[int] = []
    stop = threading.Event()

    def schedule() -> None:
        step = 1
        while not stop.wait(0.001):
            step += 1
            policy = link.poll_policy(step)
            if policy is not None:
                used.append(policy.revision)
                link.ack(policy.revision, step)
            link.emit(wire.SkipEvent(step=step, request="r", reason="x"))

    scheduler = threading.Thread(target=schedule)
    scheduler.start()
    last, sent = 4000, set()
    try:
        for revision in range(1000, last + 1):
            kind = source.randrange(4)
            if kind == 0 or revision == last:
                control.policy(revision)
            elif kind == 1:
                control.send(wire.Watch(seconds=60, requests=True, kept=str(revision)))
            else:
                control.send(mangled(source, FRAMES[0]))
            while revision % 100 == 0 and control.router.poll(1):
                control.router.recv_multipart()

        def arrived() -> bool:
            # A ROUTER drops what its peer is too slow to take.
            control.policy(last)
            return bool(used) and used[-1] == last

        eventually(arrived, timeout=20)
    finally:
        stop.set()
        scheduler.join()
    # A mangled frame may well be a policy, of revision 2 or another.
    assert all(revision in checked for revision in used)
    assert [r for r in used if r in sent] == sorted(r for r in used if r in sent)
    assert link.connected
    assert link.watch is not None
    control.send(wire.Identify())
    assert control.receive(wire.Hello, timeout=20).revision == last
