"""A parent process that has imported SGLang and forks one child per scenario, as the vLLM rig has one."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import time
import traceback
from pathlib import Path


def preload() -> None:
    """Import what every scenario needs. Starts no thread that a fork would lose."""
    import torch

    torch.set_num_threads(1)
    if os.environ.get("TRITON_INTERPRET") == "1":
        from engine.zygote import enable_interpreted_triton

        enable_interpreted_triton()
    import sglang.srt.layers.attention.torch_native_backend
    import sglang.srt.managers.scheduler
    import sglang.srt.models.registry
    import sglang.srt.server_args  # noqa: F401

    from . import paged

    if os.environ.get("TRITON_INTERPRET") != "1":
        paged.install()

    gc.collect()
    gc.freeze()


def child(job: Path) -> None:
    """Run the scenario in ``job``/in.pickle; leave ``job``/out.pickle: ("ok", Run) or ("error", text)."""
    log = os.open(job / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        from .driver import Driver

        scenario = pickle.loads((job / "in.pickle").read_bytes())
        answer = ("ok", Driver(scenario, job).run())
    except BaseException:
        answer = ("error", traceback.format_exc())
    partial = job / "out.partial"
    partial.write_bytes(pickle.dumps(answer))
    partial.rename(job / "out.pickle")


def main() -> None:
    """Read job directories from stdin, one a line; answer each with a line when its child is done."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    start = time.monotonic()
    preload()
    print(f"ready {time.monotonic() - start:.1f}", file=answers, flush=True)
    for line in sys.stdin:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            # Its own process group, so that the rig can end it together with its ranks.
            os.setpgid(0, 0)
            os.close(0)
            child(Path(line.strip()))
            sys.stdout.flush()
            os._exit(0)
        print(f"started {pid}", file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(f"done {os.waitstatus_to_exitcode(status)}", file=answers, flush=True)
