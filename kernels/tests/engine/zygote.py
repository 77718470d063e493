"""A parent process that has imported vLLM and forks one child per scenario.

Importing takes seven seconds, an engine for a tiny model two, and vLLM's state is global to a
process: so fork. One zygote per model runner, since Triton's interpreter must be chosen before
anything is imported.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import pickle
import sys
import time
import traceback
from pathlib import Path
from typing import Any


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
            # Its own process group, so that the rig can end it together with its workers.
            os.setpgid(0, 0)
            os.close(0)
            child(Path(line.strip()))
            sys.stdout.flush()
            os._exit(0)
        print(f"started {pid}", file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(f"done {os.waitstatus_to_exitcode(status)}", file=answers, flush=True)
