"""Events waiting to be sent: numbered, bounded, the oldest dropped first."""

from __future__ import annotations

import threading
from collections import deque

from triattn import wire


class EventQueue:
    """Every event has a number, so the receiver sees which ones are missing."""

    def __init__(self, capacity: int, first: int) -> None:
        self._events: deque[wire.EngineEvent] = deque(maxlen=capacity)
        self._next = first
        self._lock = threading.Lock()
        self.dropped = 0

    def append(self, event: wire.EngineEvent) -> None:
        with self._lock:
            if len(self._events) == self._events.maxlen:
                self.dropped += 1
            self._events.append(event)
            self._next += 1

    def take(self, limit: int) -> wire.Events | None:
        """Up to `limit` of the oldest events, removed; None when there are none."""
        with self._lock:
            first = self._next - len(self._events)
            count = min(limit, len(self._events))
            events = [self._events.popleft() for _ in range(count)]
        return wire.Events(first=first, events=events) if events else None

    def drop(self, count: int) -> None:
        """Count events that were taken and could not be sent."""
        with self._lock:
            self.dropped += count

    @property
    def first(self) -> int:
        """Number of the oldest event that is here, or of the next to come."""
        with self._lock:
            return self._next - len(self._events)
