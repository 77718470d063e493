"""A parent process that has imported vLLM and forks one child per scenario.

Importing takes seven seconds, an engine for a tiny model two, and vLLM's state is global to a
process: so fork. One zygote per model runner, since Triton's interpreter must be chosen before
anything is imported.
"""

from __future__ import annotations

import dataclasses
import gc
import os
from typing import Any

from .forking import serve


def enable_interpreted_triton() -> None:
    """Let vLLM's Model Runner V2 run without a GPU: its Triton kernels interpreted on the CPU.

    vLLM looks for a Triton backend called "cpu" and only asks whether it is there.
    """
    from triton.backends import Backend, backends
    from triton.backends.compiler import BaseBackend
    from triton.backends.driver import DriverBase

    backends.setdefault("cpu", Backend(BaseBackend, DriverBase))
    _hasten_interpreter()

    import triton.language as tl
    from triton.language.extra import libdevice

    # The interpreter knows nothing of CUDA's library; vLLM 0.26 draws tokens with this function of it.
    libdevice.log1p = lambda x: tl.log(1.0 + x)


def _hasten_interpreter() -> None:
    """Triton's interpreter replaces the language's functions before every launch and puts them back after
    it, which costs more than the kernels of a tiny model. Here nothing needs them back."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch, done = interpreter._patch_lang, set()

    class Nothing:
        @staticmethod
        def restore() -> None: ...

    def patch_once(function: Any) -> type[Nothing]:
        langs = frozenset(
            id(value) for value in function.__globals__.values() if value is tl or value is tl.core
        )
        if langs not in done:
            patch(function)
            done.add(langs)
        return Nothing

    slow = interpreter._get_np_dtype
    by_name: dict[str, Any] = {}

    def np_dtype(of: Any) -> Any:
        name = (of.element_ty if isinstance(of, tl.block_type) else of).name
        found = by_name.get(name)
        if found is None:
            found = by_name[name] = slow(of)
        return found

    # A third of the time: 64-bit checks of every 32-bit sum, which compiled kernels do not make either.
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    interpreter._patch_lang = patch_once
    interpreter._get_np_dtype = np_dtype


def preload() -> None:
    """Import what every scenario needs. Starts no thread that a fork would lose."""
    import torch

    torch.set_num_threads(1)
    if os.environ.get("TRITON_INTERPRET") == "1":
        enable_interpreted_triton()
    import compressed_tensors  # noqa: F401
    import transformers  # noqa: F401
    import vllm.model_executor.models.llama
    import vllm.model_executor.models.qwen3
    import vllm.v1.core.sched.async_scheduler
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_model_runner
    import vllm.v1.worker.cpu_worker

    if os.environ.get("TRITON_INTERPRET") == "1":
        import vllm.v1.worker.cpu.model_runner  # noqa: F401
    # Children collect garbage several times while they start; what is here now is none of it.
    gc.collect()
    gc.freeze()


def main() -> None:
    """Answer jobs; see `forking.serve`."""

    def driver() -> type:
        from .driver import Driver

        return Driver

    serve(preload, driver)
