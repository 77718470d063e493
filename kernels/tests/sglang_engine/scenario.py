"""What to run on SGLang: plain data, picklable. Requests and outcomes are those of the vLLM rig."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.models import SPECS, ModelSpec
from engine.scenario import Request

if TYPE_CHECKING:
    from .driver import Driver


@dataclass
class Scenario:
    """One scheduler (one a rank) and what happens to it. What is not said here is as in engine.scenario.Scenario.

    plugin: {"policy": document, "statistics": path}, given to SGLang through TRIATTN_POLICY and TRIATTN_STATS.
    tokens: slots of the KV pool; chunk: tokens of a prefill batch.
    interpreted: attention by SGLang's Triton kernels, interpreted, and triattn's own likewise.
    device: "cpu", or "cuda": SGLang as it is there, with its own kernels and CUDA graphs for decode, in bfloat16.
    strict: SGLang's own checks of the pool, after every step.
    pages: those of every page as well, for which the host waits for the device.
    log_probs: those of every generated token, over the vocabulary.
    prompt_log_probs: those of the prompt's tokens are asked for as well; on_finish sees them.
    """

    model: str = "llama"
    plugin: dict[str, Any] | None = None
    requests: list[Request] = field(default_factory=list)
    tokens: int = 8192
    page: int = 1
    chunk: int = 2048
    max_model_len: int = 4096
    max_running: int = 32
    radix: bool = True
    overlap: bool = True
    interpreted: bool = False
    tp: int = 1
    device: str = "cpu"
    strict: bool = True
    pages: bool = True
    log_probs: bool = True
    prompt_log_probs: bool = False
    max_steps: int = 20000
    control: dict[str, Any] | None = None
    environ: dict[str, str] = field(default_factory=dict)
    on_step: Callable[[Driver], Any] | None = None
    on_finish: Callable[[Driver], Any] | None = None
    server: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        return SPECS[self.model]

    @property
    def block_size(self) -> int:
        """Tokens of a page."""
        return self.page
