"""Scenarios on real engines on the GPU, each in a process of its own, all at once."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from engine import rig
from engine.models import checkpoint
from engine.scenario import Run, Scenario


def run_all(scenarios: Mapping[str, Scenario], timeout: float = 400) -> tuple[dict[str, Run], dict[str, str]]:
    """Runs by name, and of those that failed what they said."""
    site = rig.plugin_site()
    path = [str(site), str(rig.KERNELS), str(rig.KERNELS / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
    }
    jobs: dict[str, tuple[Path, subprocess.Popen[bytes]]] = {}
    for name, item in scenarios.items():
        checkpoint(item.spec)
        directory = Path(tempfile.mkdtemp(prefix="triattn-gpu-"))
        (directory / "in.pickle").write_bytes(pickle.dumps(item))
        command = [sys.executable, str(Path(__file__).with_name("engine_child.py")), str(directory)]
        with (directory / "log.txt").open("wb") as log:
            runner = {"VLLM_USE_V2_MODEL_RUNNER": str(int(item.runner == "v2"))}
            jobs[name] = (
                directory,
                subprocess.Popen(command, env=environment | runner, stdout=log, stderr=log),
            )
    done: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name, (directory, process) in jobs.items():
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
        answer = answer_of(directory)
        if isinstance(answer, str):
            failed[name] = answer
        else:
            done[name] = answer
    return done, failed


def answer_of(directory: Path) -> Run | str:
    """What a scenario's process left in its directory: a run, or what it said when it failed."""
    out = directory / "out.pickle"
    kind, value = pickle.loads(out.read_bytes()) if out.exists() else ("error", "the process died")
    if kind == "ok":
        return value
    tail = (directory / "log.txt").read_text(errors="replace")[-2500:]
    return f"{str(value)[-2500:]}\n--- log\n{tail}"
