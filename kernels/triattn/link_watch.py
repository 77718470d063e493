"""What a control plane watches: a lease that runs out by itself, and the newest report of each kind."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from triattn import wire


class Watching:
    """The engine's thread reads ``current`` and stores reports; all else belongs to the link's thread."""

    def __init__(self) -> None:
        self.current: wire.Watch | None = None
        """What is watched now. Reading it is all that an engine does while nobody watches."""
        self._until = 0.0
        self._requests: wire.RequestsReport | None = None
        self._kept: wire.KeptReport | None = None
        self._requests_sent: wire.RequestsReport | None = None
        self._kept_sent: wire.KeptReport | None = None

    def grant(self, watch: wire.Watch, step: int | None) -> None:
        """Watch for so many seconds from now; 0 ends it. ``step``: the last one that began; None: none has."""
        new = self.current is None or not self.current.requests
        if self.current is None or self.current.kept != watch.kept:
            self._kept_sent = self._kept  # of another request
        self._until = time.monotonic() + watch.seconds
        self.current = watch if watch.seconds and (watch.requests or watch.kept is not None) else None
        if new and watch.requests:
            if step is None:
                self._requests = wire.RequestsReport(step=0, requests=[], omitted=0)
            # An idle engine takes no step that could report: what it said as it fell idle still holds.
            last = self._requests
            self._requests_sent = None if last is not None and last.step == (step or 0) else last

    def expire(self) -> None:
        """End a lease that has run out."""
        if self.current is not None and time.monotonic() >= self._until:
            self.current = None

    def report_requests(self, report: wire.RequestsReport) -> None:
        """The newest state of requests."""
        self._requests = report

    def report_kept(self, report: wire.KeptReport) -> None:
        """The newest picture of what a request keeps."""
        self._kept = report

    def unsent(self) -> Iterator[wire.RequestsReport | wire.KeptReport]:
        """What is to leave now; nothing once nobody watches."""
        watch, requests, kept = self.current, self._requests, self._kept
        if watch is None:
            return
        if watch.requests and requests is not None and requests is not self._requests_sent:
            yield requests
            self._requests_sent = requests
        if watch.kept is not None and kept is not None and kept is not self._kept_sent:
            yield kept
            self._kept_sent = kept


def halved(report: wire.RequestsReport) -> wire.RequestsReport:
    """The first half of a report that is too large for a frame; what is left out is counted."""
    shown = report.requests[: len(report.requests) // 2]
    omitted = report.omitted + len(report.requests) - len(shown)
    return msgspec.structs.replace(report, requests=shown, omitted=omitted)
