"""One scenario on a real SGLang scheduler, in a process of its own: reads job/in.pickle, leaves job/out.pickle.

    python -m gpu.sglang_child JOB

With ``device="cpu"`` in the scenario it is the CPU tests' engine, shims and all; on a GPU nothing stands for anything.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path


def main(job: Path) -> None:
    """Run the scenario; SGLang's own threads do not keep the process."""
    from engine import forking
    from gpu import specs  # noqa: F401

    if pickle.loads((job / "in.pickle").read_bytes()).device == "cpu":
        from sglang_engine import zygote

        zygote.preload()

    def driver() -> type:
        from sglang_engine.driver import Driver

        return Driver

    forking.child(job, driver)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
