"""Scenarios on real SGLang schedulers, each in a process of its own, as many at once as there are cores, up to 16."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from engine.models import checkpoint
from engine.scenario import Run
from gpu.engines import answer_of
from sglang_engine import rig
from sglang_engine.scenario import Scenario

LOGS = "TRIATTN_TEST_LOGS"
"""Environment variable: a directory that every scenario's log is copied to."""

# What a backend of SGLang needs, as a program that fails with the reason in its last line.
NEEDS = {
    "fa3": "from sgl_kernel import flash_ops\nfrom sgl_kernel.flash_attn import flash_attn_with_kvcache",
    "flashinfer": """
import importlib.util, os, shutil
from flashinfer import BatchDecodeWithPagedKVCacheWrapper, BatchPrefillWithPagedKVCacheWrapper
from flashinfer.cascade import merge_state
cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
if not (importlib.util.find_spec("flashinfer_jit_cache") or shutil.which("nvcc", path=f"{cuda}/bin")
        or shutil.which("nvcc")):
    raise SystemExit("flashinfer compiles its kernels with nvcc, and there is none")
""",
}


def missing(backend: str) -> str | None:
    """Why SGLang cannot use an attention backend here; None: it can."""
    program = [sys.executable, "-c", NEEDS[backend]]
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        return f"{backend}: its import takes more than 90 s"
    if done.returncode == 0:
        return None
    return f"{backend}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"


def environment(site: Path, device: str) -> dict[str, str]:
    """Variables of a scenario's process."""
    if device == "cpu":
        return rig.environment(site, interpreted=False)
    own = ("TRIATTN_POLICY", "TRIATTN_STATS", "TRIATTN_SOCKET", "TRIATTN_OBSERVE_DIR", "TRITON_INTERPRET")
    path = [str(site), str(rig.KERNELS), str(rig.KERNELS / "tests"), os.environ.get("PYTHONPATH", "")]
    return {
        **{name: value for name, value in os.environ.items() if name not in own},
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "SGLANG_PLUGINS": "triattn",
        # The kernels' package may be a build of its own.
        "SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK": "1",
        # As SGLang sets them where it starts its schedulers.
        "NCCL_CUMEM_ENABLE": "0",
        "NCCL_NVLS_ENABLE": "0",
        "CUDA_DEVICE_MAX_CONNECTIONS": "8",
        # Not a pool of compilers for each of many processes.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _ports(count: int) -> list[int]:
    """Free ports, no two the same."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _start(item: Scenario, site: Path, port: int) -> tuple[Path, subprocess.Popen[bytes]]:
    checkpoint(item.spec)
    directory = Path(tempfile.mkdtemp(prefix="triattn-gpu-"))
    item = replace(item, server={"nccl_port": port, **item.server})
    (directory / "in.pickle").write_bytes(pickle.dumps(item))
    command = [sys.executable, "-m", "gpu.sglang_child", str(directory)]
    with (directory / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment(site, item.device), stdout=log, stderr=log, start_new_session=True
        )
    return directory, process


def run_all(
    scenarios: Mapping[str, Scenario], timeout: float, at_once: int = 16
) -> tuple[dict[str, Run], dict[str, str]]:
    """Runs by name, and of those that failed, or were not done after ``timeout`` seconds, what they said."""
    site, logs = rig.plugin_site(), os.environ.get(LOGS)
    at_once = min(at_once, len(os.sched_getaffinity(0)))
    waiting = deque(zip(scenarios, _ports(len(scenarios)), strict=True))
    running: dict[str, tuple[Path, subprocess.Popen[bytes]]] = {}
    done: dict[str, Run] = {}
    failed: dict[str, str] = {}
    end = time.monotonic() + timeout
    while running or waiting:
        late = time.monotonic() > end
        while waiting and not late and len(running) < at_once:
            name, port = waiting.popleft()
            running[name] = _start(scenarios[name], site, port)
        if late:
            failed.update({name: f"not begun after {timeout:.0f} s" for name, _ in waiting})
            waiting.clear()
        for name, (directory, process) in list(running.items()):
            if process.poll() is None and not late:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            del running[name]
            answer = answer_of(directory)
            if isinstance(answer, str):
                failed[name] = answer if not late else f"not done after {timeout:.0f} s\n{answer}"
            else:
                done[name] = answer
            if logs:
                Path(logs).mkdir(parents=True, exist_ok=True)
                shutil.copy(directory / "log.txt", Path(logs) / f"{name.replace(' ', '-')}.txt")
            shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.1)
    shutil.rmtree(site, ignore_errors=True)
    return done, failed
