"""The socket under EngineLink: one DEALER, whether it is connected, and how to wake who waits on it."""

from __future__ import annotations

import contextlib
import logging
import socket

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from triattn import wire
from triattn.config import SOCKET, Curve
from triattn.errors import ConfigError

MAX_FRAME = 1 << 20
"""Bytes of the largest message that either side sends."""

_log = logging.getLogger("triattn.link")


class CannotSend(ValueError):
    """A message of more than MAX_FRAME bytes, or with text or a number that has no encoding."""


class LinkSocket:
    """All methods but `wake` belong to one thread."""

    def __init__(self, endpoint: str, curve: Curve | None) -> None:
        # A context of its own: the engine has one too, with sockets and limits that are not ours.
        self._context = zmq.Context()
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self._dealer = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, 256),
            (zmq.RCVHWM, 256),
            (zmq.MAXMSGSIZE, 4 * MAX_FRAME),
            # Nothing is queued for a peer that is not there: it waits in our own bounded queues instead.
            (zmq.IMMEDIATE, 1),
            (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, 1000),
            # A host that vanished is noticed; a process that died is noticed without.
            (zmq.HEARTBEAT_IVL, 5000),
            (zmq.HEARTBEAT_TIMEOUT, 20000),
        ):
            self._dealer.setsockopt(option, value)
        if curve is not None:
            self._dealer.curve_serverkey = curve.server_key.encode("ascii")
            self._dealer.curve_publickey = curve.public_key.encode("ascii")
            self._dealer.curve_secretkey = curve.secret_key.encode("ascii")
        self._monitor = self._dealer.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._poller = zmq.Poller()
        self._poller.register(self._dealer, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._poller.register(self._wake_out.fileno(), zmq.POLLIN)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[wire.ControlMessage] = msgspec.msgpack.Decoder(
            wire.ControlMessage
        )
        self.connected = False
        self.greeted = False
        """Whether this connection has been told who we are."""
        self.malformed = 0
        try:
            self._dealer.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(SOCKET, endpoint, f"an address that ZeroMQ takes ({error})") from None

    def wake(self) -> None:
        """End a `receive` that waits. From any thread."""
        # Full: a wake-up is on its way already. Closed: nobody waits any more.
        with contextlib.suppress(OSError):
            self._wake_in.send(b"\0")

    def receive(self, timeout: float) -> list[wire.ControlMessage]:
        """What has arrived; waits up to `timeout` seconds for something to happen."""
        ready = dict(self._poller.poll(timeout * 1000))
        if self._wake_out.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake_out.recv(4096)
        if self._monitor in ready:
            self._read_monitor()
        messages: list[wire.ControlMessage] = []
        if self._dealer in ready:
            with contextlib.suppress(zmq.Again):
                while len(messages) < 64:
                    frames = self._dealer.recv_multipart(zmq.NOBLOCK)
                    message = self._decode(frames)
                    if message is not None:
                        messages.append(message)
        return messages

    def send(self, message: wire.EngineMessage) -> bool:
        """False when it would have to wait. Raises CannotSend."""
        try:
            frame = self._encoder.encode(message)
        except (UnicodeEncodeError, OverflowError, TypeError) as error:
            raise CannotSend(f"{type(message).__name__}: {error}") from None
        if len(frame) > MAX_FRAME:
            raise CannotSend(f"{type(message).__name__} of {len(frame)} bytes, more than {MAX_FRAME}")
        try:
            self._dealer.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self, linger: float = 0.0) -> None:
        """Gives queued messages up to `linger` seconds to leave."""
        self.connected = False
        self._dealer.disable_monitor()
        self._dealer.close(int(linger * 1000))
        self._monitor.close(0)
        self._context.term()
        self._wake_in.close()
        self._wake_out.close()

    def _read_monitor(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
                self.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                self.greeted = False

    def _decode(self, frames: list[bytes]) -> wire.ControlMessage | None:
        try:
            if len(frames) != 1 or len(frames[0]) > MAX_FRAME:
                raise ValueError(f"{len(frames)} frames of {sum(map(len, frames))} bytes")
            return self._decoder.decode(frames[0])
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            self.malformed += 1
            if self.malformed == 1:
                _log.warning("triattn: dropped a message of the control plane (logged once): %s", error)
            return None
