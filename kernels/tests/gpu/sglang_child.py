"""One scenario on a real SGLang scheduler, in a process of its own: reads job/in.pickle, leaves job/out.pickle.

    python -m gpu.sglang_child JOB

With ``device="cpu"`` in the scenario it is the CPU tests' engine, shims and all; on a GPU nothing stands for anything.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any


def one_at_a_time() -> None:
    """Let no two processes compile, or load, the same kernel at once: SGLang loads what a compiler is still writing.

    A server compiles alone; the tests start many engines together.
    """
    from sglang.kernels.jit import utils

    load = utils.load_jit

    def locked(*args: Any, **kwargs: Any) -> Any:
        name = hashlib.sha256(repr(args).encode()).hexdigest()[:16]
        with (Path(tempfile.gettempdir()) / f"triattn-jit-{os.getuid()}-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return load(*args, **kwargs)

    utils.load_jit = utils.compile.load_jit = locked


def main(job: Path) -> None:
    """Run the scenario; SGLang's own threads do not keep the process."""
    from engine import forking
    from gpu import specs  # noqa: F401

    if pickle.loads((job / "in.pickle").read_bytes()).device == "cpu":
        from sglang_engine import zygote

        zygote.preload()
    else:
        one_at_a_time()

    def driver() -> type:
        from sglang_engine.driver import Driver

        return Driver

    forking.child(job, driver)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
