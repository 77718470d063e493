"""The link of an engine process to the control plane."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec

from triattn import wire
from triattn.config import Curve
from triattn.errors import LinkError, LinkRejected, LinkTimeout, PolicyRefused
from triattn.link_events import EventQueue
from triattn.link_socket import CannotSend, LinkSocket
from triattn.link_watch import Watching, halved

__all__ = ["EngineLink", "LinkError", "LinkRejected", "LinkTimeout", "PolicyRefused"]

_log = logging.getLogger("triattn.link")

# Events in one message.
_BATCH = 256

# Characters of one field of a refusal: a value may be as long as the document it came from.
_TEXT = 2000

Validate = Callable[[wire.SetPolicy], wire.Refusal | None]


class EngineLink:
    """Connects an engine to the control plane at `endpoint`, for as long as the engine lives.

    A thread of its own owns the socket, connects again by itself and says hello each time, so a control
    plane that was killed can be replaced by another at the same address. No method but
    `wait_for_policy` and `close` ever waits.

    validate: says whether this engine can use a policy; called on the link's thread as one arrives. A policy
        that it refuses never reaches `poll_policy`. It must touch nothing that the engine is changing.
    event_capacity: events kept while they cannot be sent; beyond it the oldest are dropped and counted.
    idle: seconds after which a policy that no step has picked up is acknowledged for the step to come.
    heartbeat: seconds between signs of life.
    """

    def __init__(
        self,
        endpoint: str,
        hello: wire.Hello,
        *,
        validate: Validate | None = None,
        curve: Curve | None = None,
        event_capacity: int = 65536,
        idle: float = 0.25,
        heartbeat: float = 1.0,
        flush: float = 0.05,
    ) -> None:
        self._endpoint = endpoint
        self._hello = hello
        self._validate = validate
        self._idle = idle
        self._heartbeat = heartbeat
        self._flush = flush

        self._state = threading.Condition()
        self._pending: wire.SetPolicy | None = None
        self._pending_since = 0.0
        self._newest: wire.SetPolicy | None = None
        self._last_ack: wire.Ack | None = None
        self._in_force = hello.revision
        self._polled_step: int | None = None
        self._failure: LinkError | None = None

        self._replies: deque[wire.Ack | wire.Refusal] = deque()
        self._events = EventQueue(event_capacity, hello.next_event)
        self._batch: wire.Events | None = None
        self._watching = Watching()
        self._counters: wire.Counters | None = None
        self._counters_sent: wire.Counters | None = None
        self._last_sent = 0.0

        self._closing: str | None = None
        self._socket = LinkSocket(endpoint, curve)
        self._thread = threading.Thread(target=self._run, name="triattn-link", daemon=True)
        self._thread.start()
        atexit.register(self.close, "exit")

    # The engine's side. Called from the thread that schedules.

    def wait_for_policy(self, timeout: float = 30.0) -> wire.SetPolicy:
        """The first policy, acknowledged for step 1; `timeout` is in seconds.

        Raises LinkTimeout, LinkRejected or PolicyRefused.
        """
        with self._state:
            self._state.wait_for(lambda: self._pending is not None or self._failure is not None, timeout)
            if self._failure is not None:
                raise self._failure
            if self._pending is None:
                raise LinkTimeout(
                    f"no policy from the control plane at {self._endpoint} within {timeout:g} s: "
                    "start it first, and see that TRIATTN_SOCKET is its address"
                )
            policy, self._pending = self._pending, None
            # In force from the first step on, and there may be none before the first request.
            self._acknowledge(policy.revision, 1)
        self._socket.wake()
        return policy

    def poll_policy(self, step: int) -> wire.SetPolicy | None:
        """The newest policy not returned before, to be put in force for `step`.

        `step` is the one about to be scheduled; every step must call this, with growing numbers.
        """
        self._polled_step = step
        if self._pending is None:
            return None
        with self._state:
            policy, promise = self._pending, self._last_ack
            if promise is not None and promise.revision == policy.revision and promise.step > step:
                # Acknowledged for the next step in the very moment in which this one began.
                return None
            self._pending = None
            return policy

    def ack(self, revision: int, step: int) -> None:
        """Every rank begins to use `revision` at `step`."""
        with self._state:
            self._acknowledge(revision, step)
        self._socket.wake()

    def refuse(self, revision: int, field: str, value: object, remedy: str, message: str) -> None:
        """`revision` cannot be used; the one before stays in force."""
        refusal = wire.Refusal(
            revision=revision, field_=field, value=str(value), remedy=remedy, message=message
        )
        self._replies.append(_shortened(refusal))
        self._socket.wake()

    def emit(self, event: wire.EngineEvent) -> None:
        """Queue an event; it leaves within about `flush` seconds."""
        self._events.append(event)

    def report(self, counters: wire.Counters) -> None:
        """Counters to send; only the newest that have not left are kept."""
        self._counters = counters

    @property
    def watch(self) -> wire.Watch | None:
        """What the control plane wants reported now; None: nobody watches."""
        return self._watching.current

    def report_requests(self, report: wire.RequestsReport) -> None:
        """State of requests to send while it is watched; only the newest is kept."""
        self._watching.report_requests(report)

    def report_kept(self, report: wire.KeptReport) -> None:
        """What the watched request keeps, to send while it is watched; only the newest is kept."""
        self._watching.report_kept(report)

    def close(self, reason: str = "closed") -> None:
        """Send what is queued and say goodbye, within a second. Calling it again does nothing."""
        if self._closing is None:
            self._closing = reason
            self._socket.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(2.0)
        atexit.unregister(self.close)

    @property
    def connected(self) -> bool:
        """Whether a control plane is there now."""
        return self._socket.connected

    @property
    def events_dropped(self) -> int:
        """Events dropped because the queue was full."""
        return self._events.dropped

    @property
    def frames_dropped(self) -> int:
        """Frames from the control plane that were not understood."""
        return self._socket.malformed

    # The link's side: everything below runs on its thread.

    def _run(self) -> None:
        try:
            while self._closing is None:
                for message in _newest(self._socket.receive(self._flush)):
                    self._receive(message)
                self._watching.expire()
                self._acknowledge_idle()
                self._send()
            self._send()
            if self._socket.greeted:
                self._socket.send(wire.Bye(reason=self._closing))
        except Exception:  # the engine must go on: it keeps the policy it has
            _log.exception("triattn: the link to the control plane failed; the last policy stays in force")
        finally:
            self._socket.close(linger=0.5)

    def _receive(self, message: wire.ControlMessage) -> None:
        match message:
            case wire.SetPolicy():
                self._receive_policy(message)
            case wire.Watch():
                self._watching.grant(message, self._polled_step)
            case wire.Rejected(message=reason):
                _log.error("triattn: the control plane rejected this engine: %s", reason)
                with self._state:
                    self._failure = LinkRejected(reason)
                    self._state.notify_all()
            case wire.Identify():
                self._socket.greeted = False

    def _receive_policy(self, policy: wire.SetPolicy) -> None:
        with self._state:
            known = policy == self._newest and self._last_ack is not None
            if known and self._last_ack.revision == policy.revision:
                # Sent again after a reconnect; the acknowledgement may have been lost with the connection.
                self._replies.append(self._last_ack)
                return
        refusal = self._refusal(policy)
        with self._state:
            if refusal is None:
                self._newest = self._pending = policy
                self._pending_since = time.monotonic()
                self._failure = None
            else:
                self._replies.append(_shortened(refusal))
                if self._newest is None:
                    self._failure = PolicyRefused(refusal)
            self._state.notify_all()

    def _refusal(self, policy: wire.SetPolicy) -> wire.Refusal | None:
        if self._validate is None:
            return None
        try:
            return self._validate(policy)
        except Exception as error:
            _log.exception("triattn: policy revision %d could not be checked", policy.revision)
            return wire.Refusal(
                revision=policy.revision,
                field_="policy",
                value=policy.policy.name,
                remedy="see the engine's log",
                message=f"the engine could not check the policy: {error!r}",
            )

    def _acknowledge(self, revision: int, step: int) -> None:
        if self._last_ack is None or self._last_ack.revision != revision:
            self._in_force = revision
            self._last_ack = wire.Ack(revision=revision, step=step)
            self._replies.append(self._last_ack)

    def _acknowledge_idle(self) -> None:
        """An idle scheduler does not step: promise the policy for the next step, which will poll it."""
        if self._pending is None or time.monotonic() - self._pending_since < self._idle:
            return
        with self._state:
            step = self._polled_step
            if step is None and self._last_ack is not None:
                # Nothing has run since the start: the next step is the first.
                step = 0
            if self._pending is not None and step is not None:
                self._acknowledge(self._pending.revision, step + 1)

    def _send(self) -> None:
        if not self._socket.connected:
            return
        if not self._socket.greeted:
            hello = msgspec.structs.replace(self._hello, revision=self._in_force, next_event=self._first())
            if not self._sent(hello):
                return
            self._socket.greeted = True
            self._counters_sent = None
        while self._replies and self._sent(self._replies[0]):
            self._replies.popleft()
        while self._send_events():
            pass
        counters = self._counters
        new = counters is not None and counters is not self._counters_sent
        if new and self._sent(wire.CountersReport(counters=counters)):
            self._counters_sent = counters
        for report in self._watching.unsent():
            if not self._send_report(report):
                break
        if time.monotonic() - self._last_sent >= self._heartbeat:
            self._sent(wire.Heartbeat(revision=self._in_force, next_event=self._first()))

    def _first(self) -> int:
        """Number of the oldest event that has not left."""
        return self._events.first if self._batch is None else self._batch.first

    def _send_events(self) -> bool:
        """One batch; False when there is none or it has to wait."""
        if self._batch is None:
            self._batch = self._events.take(_BATCH)
        if self._batch is None:
            return False
        try:
            if not self._sent(self._batch):
                return False
        except CannotSend:
            self._send_singly(self._batch)
        self._batch = None
        return True

    def _send_singly(self, batch: wire.Events) -> None:
        """A client may choose request ids so long that a batch does not fit a frame."""
        for offset, event in enumerate(batch.events):
            with contextlib.suppress(CannotSend):
                if self._sent(wire.Events(first=batch.first + offset, events=[event])):
                    continue
            self._events.drop(1)

    def _send_report(self, report: wire.RequestsReport | wire.KeptReport) -> bool:
        """False when it has to wait; what cannot be sent at all is given up."""
        while True:
            try:
                return self._sent(report)
            except CannotSend:
                if not isinstance(report, wire.RequestsReport) or not report.requests:
                    return True
                report = halved(report)

    def _sent(self, message: wire.EngineMessage) -> bool:
        if not self._socket.send(message):
            return False
        self._last_sent = time.monotonic()
        return True


def _newest(messages: list[wire.ControlMessage]) -> list[wire.ControlMessage]:
    """Messages without policies that one behind them replaces: a flood of policies is not checked one by one."""
    policies = [i for i, message in enumerate(messages) if isinstance(message, wire.SetPolicy)]
    dropped = set(policies[:-1])
    return [message for i, message in enumerate(messages) if i not in dropped]


def _shortened(refusal: wire.Refusal) -> wire.Refusal:
    texts = {name: getattr(refusal, name)[:_TEXT] for name in ("field_", "value", "remedy", "message")}
    return msgspec.structs.replace(refusal, **texts)
