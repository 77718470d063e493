"""Runs an engine so that nothing of it outlives the process that asked for it.

    python -I -S launch.py GRACE_SECONDS COMMAND [ARGUMENT …]

`triattn serve` starts this instead of the engine, in a session of its own, and keeps the other end of its
standard input open. The engine stops, in order, when that end closes (the parent is gone, however it went) or on
SIGTERM or SIGINT: SIGTERM to the engine's first process, which shuts the others down; after GRACE_SECONDS, SIGKILL
to all that is left. A second signal kills at once. When the first process ends by itself, the same is done to what
it leaves behind. Exits with the engine's code, or 128 + the number of the signal that ended it.

This process adopts whatever the engine's processes orphan (PR_SET_CHILD_SUBREAPER), sessions of their own or not;
and the engine's first process is killed if this one dies (PR_SET_PDEATHSIG). It needs nothing but Python's standard
library. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LEFTOVER_SECONDS = 3.0
"""How long processes that the engine left behind get between SIGTERM and SIGKILL."""


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def descendants() -> list[int]:
    """Process ids of everything below this process, zombies left out."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                # The name, in parentheses, may hold anything; state and parent follow its last one.
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(entry))
    found: list[int] = []
    frontier = [os.getpid()]
    while frontier:
        frontier = [child for parent in frontier for child in children.get(parent, [])]
        found += frontier
    return found


def _signal_all(number: int) -> None:
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


class Guardian:
    """One engine, from its start to the end of its last process."""

    def __init__(self, command: list[str], grace: float) -> None:
        self.grace = grace
        self.status: int | None = None
        self.stops = 0
        """Requests to stop so far: the first is in order, the second is not."""
        self.deadline: float | None = None
        self.wake, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        own = os.getpid()

        def bind() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != own:
                os._exit(1)

        # Safe: this process has one thread.
        self.engine = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=bind)  # noqa: PLW1509

    def _asked(self, *_: object) -> None:
        self.stops += 1

    def run(self) -> int:
        """Wait for the end; the exit code to pass on."""
        parent_open = True
        handled = 0
        while True:
            self._reap()
            if self.status is not None:
                break
            if self.stops > handled:
                handled = self.stops
                self._stop()
            remaining = None
            if self.deadline is not None:
                remaining = self.deadline - time.monotonic()
                if remaining <= 0:
                    _signal_all(signal.SIGKILL)
                    remaining = 0.05
            ready, _, _ = select.select([self.wake, *([0] if parent_open else [])], [], [], remaining)
            if self.wake in ready:
                os.read(self.wake, 4096)
            if 0 in ready and not os.read(0, 4096):
                parent_open = False
                self.stops = max(self.stops, 1)
        self._sweep()
        # Python takes its handlers away before it ends; one more request must not change the exit code.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        return self.status if self.status >= 0 else 128 - self.status

    def _stop(self) -> None:
        if self.stops == 1:
            self.deadline = time.monotonic() + self.grace
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.engine.pid, signal.SIGTERM)
        else:
            self.deadline = time.monotonic()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.engine.pid:
                self.status = self.engine.returncode = os.waitstatus_to_exitcode(status)

    def _sweep(self) -> None:
        """End what the engine's first process left running."""
        start = time.monotonic()
        _signal_all(signal.SIGTERM)
        while (left := descendants()) and time.monotonic() < start + 2 * LEFTOVER_SECONDS:
            if self.stops >= 2 or time.monotonic() >= start + LEFTOVER_SECONDS:
                _signal_all(signal.SIGKILL)
            time.sleep(0.02)
            self._reap()
        if left:
            print(f"triattn: processes {left} could not be ended", file=sys.stderr)


def main() -> None:
    """Command line."""
    grace, *command = sys.argv[1:]
    try:
        guardian = Guardian(command, float(grace))
    except OSError as error:
        print(f"triattn: {command[0]} cannot be started: {error.strerror or error}", file=sys.stderr)
        sys.exit(127)
    sys.exit(guardian.run())


if __name__ == "__main__":
    main()
