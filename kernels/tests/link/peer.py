"""The other end of an engine's link: a ROUTER that a test plays by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from triattn import wire
from triattn.config import preset
from triattn.link import EngineLink

HELLO = wire.Hello(
    protocol=wire.PROTOCOL_VERSION,
    engine_id="engine-1",
    engine=wire.EngineInfo(name="vllm", version="0", runner="v1", pid=1, world_size=1),
    model=wire.ModelGeometry(
        name="m", fingerprint="f", weights=None, layers=1, query_heads=1, kv_heads=1, head_dim=2, rotary=None
    ),
    cache=wire.CacheInfo(block_size=32, blocks=10, max_model_len=1000, dtype="float32"),
    capabilities=[],
    revision=0,
    next_event=0,
)


class Control:
    """A control plane that does only what a test tells it to."""

    def __init__(self, endpoint: str) -> None:
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.linger = 0
        self.router.bind(endpoint)
        self.peer = b""
        self.decoder = msgspec.msgpack.Decoder(wire.EngineMessage)

    def receive(self, kind: type | None = None, timeout: float = 5.0) -> Any:
        """The next message, or the next of `kind`; heartbeats are passed over unless asked for."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            if not self.router.poll(left * 1000):
                break
            self.peer, frame = self.router.recv_multipart()
            message = self.decoder.decode(frame)
            if isinstance(message, kind) if kind else not isinstance(message, wire.Heartbeat):
                return message
        raise AssertionError(f"no {kind} within {timeout} s")

    def send(self, message: wire.ControlMessage | bytes) -> None:
        frame = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
        self.router.send_multipart([self.peer, frame])

    def policy(self, revision: int, name: str = "random", **changes: Any) -> None:
        policy = msgspec.structs.replace(preset(name), **changes)
        self.send(wire.SetPolicy(revision=revision, policy=policy, statistics=None))

    def close(self) -> None:
        self.router.close(0)
        self.context.term()


def eventually(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


def started(control: Control, link: EngineLink) -> None:
    """Takes the link through its first policy, in force from step 1."""
    control.receive(wire.Hello)
    control.policy(1)
    link.wait_for_policy(5)
    link.ack(1, 1)  # already done
    assert link.poll_policy(1) is None
    assert control.receive(wire.Ack) == wire.Ack(revision=1, step=1)
