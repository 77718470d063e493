"""One scenario on a real vLLM on the GPU, in a process of its own: reads job/in.pickle, leaves job/out.pickle."""

from __future__ import annotations

import contextlib
import pickle
import sys
import traceback
from pathlib import Path


def main(job: Path) -> None:
    """Run the scenario with the engine as it is on a GPU: V2 runner, async scheduling, full CUDA graphs."""
    from engine import driver
    from gpu import specs  # noqa: F401

    # What the driver does to make a CPU behave like a GPU has no place here.
    driver.forced_async_scheduling = lambda force: contextlib.nullcontext()
    driver.async_copies_on_cpu = lambda: None
    scenario = pickle.loads((job / "in.pickle").read_bytes())
    try:
        answer: tuple[str, object] = ("ok", driver.Driver(scenario, job).run())
    except BaseException:
        answer = ("error", traceback.format_exc())
    (job / "out.pickle").write_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
