"""What a worker tells the scheduler, on the output that a step sends there anyway.

vLLM sources: ``vllm/v1/outputs.py`` (``ModelRunnerOutput``, a dataclass that keeps and pickles attributes of
others), ``vllm/v1/worker/gpu_model_runner.py`` and ``vllm/v1/worker/gpu/async_utils.py`` (asynchronous outputs,
which fill in such an object and return it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from triattn.engines import kept
from triattn.engines.clock import RoundClock
from triattn.plan import RoundPlan

_ATTRIBUTE = "triattn"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a round kept; ``counts`` as in the protocol's KeptReport."""

    request_id: str
    step: int
    computed: int
    resident: int
    layers: int
    kv_heads: int
    bins: int
    counts: bytes


@dataclass(frozen=True, slots=True)
class StepReport:
    """Since the report before."""

    round_seconds: float
    kept: Kept | None = None


class Outbox:
    """What one rank has to tell. Only the rank whose output the scheduler reads has one."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.clock = RoundClock(device)
        self._picture: tuple[RoundPlan, int, torch.Tensor] | None = None
        self._copied: torch.cuda.Event | None = None

    @property
    def pending(self) -> bool:
        """Whether ``attach`` might have something to send."""
        return self._picture is not None or self.clock.pending

    def show(self, plan: RoundPlan, step: int, counts: torch.Tensor) -> None:
        """Take a histogram, int32 [layers, kv_heads, bins] on the device; dropped while one is on its way."""
        if self._picture is not None:
            return
        if self._on_gpu:
            host = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
            counts = host.copy_(counts, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._picture = plan, step, counts

    def attach(self, output: Any) -> None:
        """Send what is ready with the output of a step; the rest goes with a later one."""
        for name in ("model_runner_output", "_model_runner_output"):
            output = getattr(output, name, output)
        # An output without requests may be a constant that others share.
        if not getattr(output, "req_ids", None):
            return
        report = StepReport(self.clock.take(), self._take_picture())
        if report.round_seconds or report.kept is not None:
            setattr(output, _ATTRIBUTE, report)

    def _take_picture(self) -> Kept | None:
        if self._picture is None or (self._copied is not None and not self._copied.query()):
            return None
        plan, step, counts = self._picture
        self._picture = self._copied = None
        layers, heads, bins = counts.shape
        return Kept(plan.request_id, step, plan.computed, plan.keep, layers, heads, bins, kept.encode(counts))


def report_of(output: Any) -> StepReport | None:
    """What a step's output brought along."""
    return getattr(output, _ATTRIBUTE, None)
