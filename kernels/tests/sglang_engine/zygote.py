"""A parent process that has imported SGLang and forks one child per scenario, as the vLLM rig has one."""

from __future__ import annotations

import gc
import os

from engine.forking import serve


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


def main() -> None:
    """Answer jobs; see `engine.forking.serve`."""

    def driver() -> type:
        from .driver import Driver

        return Driver

    serve(preload, driver)
