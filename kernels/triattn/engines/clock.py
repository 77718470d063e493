"""How long batches of rounds take on a worker, measured so that nothing waits for it."""

from __future__ import annotations

import time

import torch


class RoundClock:
    """Seconds spent on batches of rounds, by the clock of the device that runs them.

    On a CPU every batch is measured. On a GPU a pair of events brackets a batch and is looked at in later steps;
    meanwhile batches pass unmeasured, and count as long as the one measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._unmeasured = 0
        self._started = 0.0
        self._measuring = False
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if self._on_gpu:
            self._events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))

    @property
    def pending(self) -> bool:
        """Whether there is something to take, or will be."""
        return self._measuring or self._seconds > 0.0

    def start(self) -> None:
        """A batch begins."""
        if not self._on_gpu:
            self._started = time.perf_counter()
            return
        self._unmeasured += 1
        if not self._measuring:
            self._events[0].record()

    def stop(self) -> None:
        """The batch has been launched, or on a CPU is done."""
        if not self._on_gpu:
            self._seconds += time.perf_counter() - self._started
        elif not self._measuring:
            self._events[1].record()
            self._measuring = True

    def take(self) -> float:
        """Seconds since the last call, as far as they are known."""
        if self._measuring and self._events[1].query():
            begin, end = self._events
            self._seconds += begin.elapsed_time(end) / 1000 * self._unmeasured
            self._unmeasured, self._measuring = 0, False
        seconds, self._seconds = self._seconds, 0.0
        return seconds
