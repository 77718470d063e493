"""A parent process that forks one child per scenario: the part that both engines' rigs share."""

from __future__ import annotations

import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def child(job: Path, driver: Callable[[], type]) -> None:
    """Run the scenario in ``job``/in.pickle; leave ``job``/out.pickle: ("ok", Run) or ("error", text)."""
    log = os.open(job / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        scenario = pickle.loads((job / "in.pickle").read_bytes())
        answer = ("ok", driver()(scenario, job).run())
    except BaseException:
        answer = ("error", traceback.format_exc())
    partial = job / "out.partial"
    partial.write_bytes(pickle.dumps(answer))
    partial.rename(job / "out.pickle")


def serve(preload: Callable[[], None], driver: Callable[[], type]) -> None:
    """Read job directories from stdin, one a line; answer each with a line when its child is done.

    ``driver`` imports and gives the class that runs a scenario, in the child.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    start = time.monotonic()
    preload()
    print(f"ready {time.monotonic() - start:.1f}", file=answers, flush=True)
    for line in sys.stdin:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            # Its own process group, so that the rig can end it together with its workers.
            os.setpgid(0, 0)
            os.close(0)
            child(Path(line.strip()), driver)
            sys.stdout.flush()
            os._exit(0)
        print(f"started {pid}", file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(f"done {os.waitstatus_to_exitcode(status)}", file=answers, flush=True)
