"""Runs scenarios on real SGLang; what came out is compared by the vLLM rig's own functions."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from engine.models import cache_dir, checkpoint
from engine.rig import KERNELS, EngineFailed, check, compare, oracle_log_probs, prompt
from engine.rig import Zygote as VllmZygote
from engine.scenario import Run

from .scenario import Scenario

__all__ = ["EngineFailed", "check", "compare", "oracle_log_probs", "prompt", "run"]

SHIM = Path(__file__).resolve().parent / "shim"


def environment(site: Path, interpreted: bool) -> dict[str, str]:
    """Variables of a process that runs SGLang on the CPU with triattn's entry point in sight."""
    own = ("SGLANG_", "TRIATTN_", "TRITON_")
    path = [str(site), str(SHIM), str(KERNELS), str(KERNELS / "tests")]
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(own)},
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "SGLANG_USE_CPU_ENGINE": "1",
        "SGLANG_PLUGINS": "triattn",
        # There is no NCCL to load for a group of CPUs.
        "SGLANG_NCCL_SO_PATH": "/nonexistent",
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **({"TRITON_INTERPRET": "1", "TRIATTN_ROUNDS": "triton"} if interpreted else {}),
    }


def plugin_site() -> Path:
    """A directory that makes triattn's entry point visible."""
    site = Path(tempfile.mkdtemp(prefix="triattn-site-"))
    info = site / "triattn-0.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: triattn\nVersion: 0.0.0\n")
    (info / "entry_points.txt").write_text(
        "[sglang.srt.plugins]\ntriattn = triattn.engines.sglang.plugin:register\n"
    )
    return site


class Zygote(VllmZygote):
    """The rig's end of a zygote process."""

    def __init__(self, interpreted: bool) -> None:
        self.site = plugin_site()
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__package__}.zygote import main; main()"],
            env=environment(self.site, interpreted),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            bufsize=1,
        )
        self._expect("ready", 300)

    def close(self) -> None:
        """End the zygote."""
        try:
            super().close()
        except subprocess.TimeoutExpired:
            self.process.kill()


_zygotes: dict[bool, Zygote] = {}


@atexit.register
def close() -> None:
    """End every zygote."""
    for zygote in _zygotes.values():
        zygote.close()
    _zygotes.clear()


def run(scenario: Scenario, timeout: float = 240) -> Run:
    """Run a scenario on a scheduler in a process of its own.

    Raises:
        EngineFailed: anything raised there, SGLang's own checks of every step included.
    """
    cache_dir().mkdir(parents=True, exist_ok=True)
    checkpoint(scenario.spec)
    if scenario.interpreted not in _zygotes:
        _zygotes[scenario.interpreted] = Zygote(scenario.interpreted)
    return _zygotes[scenario.interpreted].run(scenario, timeout)
