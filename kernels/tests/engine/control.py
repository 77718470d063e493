"""A stand-in for the control plane: sends policies over the real wire, collects what the engine answers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import zmq

from triattn import wire
from triattn.config import parse_policy


class StandIn:
    """A ROUTER in a thread of its own.

    messages: everything the engine sent, in order; acks and refusals of policies among them. frames: the same,
    undecoded.
    """

    def __init__(self, directory: Path, first: dict[str, Any]) -> None:
        self.endpoint = f"ipc://{directory}/control"
        self.messages: list[Any] = []
        self.frames: list[bytes] = []
        self._revision = 0
        self._outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._bound = threading.Event()
        self.send(**first) if "policy" in first else self.send(first)
        threading.Thread(target=self._serve, daemon=True).start()
        assert self._bound.wait(10)

    def send(
        self,
        policy: dict[str, Any],
        rules: Sequence[dict[str, Any]] = (),
        policies: Sequence[dict[str, Any]] = (),
        statistics: str | None = None,
    ) -> int:
        """Queue a policy (a document, defaults allowed; rules as on the wire, fields left out null); its revision."""
        self._revision += 1
        empty = {"minPriority": None, "maxPriority": None, "tags": [], "budget": None, "policy": None}
        message = wire.SetPolicy(
            revision=self._revision,
            policy=parse_policy(policy),
            statistics=statistics,
            rules=[msgspec.convert({**empty, **rule}, wire.EngineRule) for rule in rules],
            policies=[parse_policy(document) for document in policies],
        )
        self.post(message)
        return self._revision

    def post(self, message: wire.ControlMessage | bytes) -> None:
        """Queue any message, or a frame as it is."""
        self._outbox.put(message if isinstance(message, bytes) else msgspec.msgpack.encode(message))

    def of(self, kind: type) -> list[Any]:
        """Every message of a kind, in order."""
        return [m for m in list(self.messages) if isinstance(m, kind)]

    @property
    def acks(self) -> list[tuple[int, int]]:
        """(revision, step) of every acknowledgement."""
        return [(m.revision, m.step) for m in list(self.messages) if isinstance(m, wire.Ack)]

    @property
    def refusals(self) -> list[wire.Refusal]:
        """Every refusal of a policy."""
        return [m for m in list(self.messages) if isinstance(m, wire.Refusal)]

    @property
    def events(self) -> list[Any]:
        """Every event, in order."""
        return [e for m in list(self.messages) if isinstance(m, wire.Events) for e in m.events]

    def _serve(self) -> None:
        socket = zmq.Context.instance().socket(zmq.ROUTER)
        socket.bind(self.endpoint)
        self._bound.set()
        decoder = msgspec.msgpack.Decoder(wire.EngineMessage)
        peer: bytes | None = None
        while True:
            if socket.poll(5):
                peer, frame = socket.recv_multipart()
                self.frames.append(frame)
                self.messages.append(decoder.decode(frame))
            while peer is not None and not self._outbox.empty():
                socket.send_multipart([peer, self._outbox.get()])
