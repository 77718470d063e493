"""What to run on an engine, and what came out: plain data, picklable, free of vLLM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .models import SPECS, ModelSpec
from .oracle import Round

if TYPE_CHECKING:
    from .driver import Driver


@dataclass
class Request:
    """One request: token ids in, exactly ``max_tokens`` out, unless aborted.

    arrive: engine step before which it is added.
    budget: the request's own KV budget (``triattn_budget``); None: the policy's.
    tags: ``triattn_tags``; None: not given.
    abort_at: engine step before which it is aborted; abort_after: tokens received before it is aborted.
    greedy: take the likeliest token instead of drawing one. None: with the V2 runner, where drawing costs a third
        of a step (Triton is interpreted), but not with V1, since tiny models soon repeat themselves.
    refused: the engine is expected to refuse it; the message is in the result.
    """

    id: str
    prompt: list[int]
    max_tokens: int
    arrive: int = 0
    budget: Any = None
    tags: Any = None
    priority: int = 0
    abort_at: int | None = None
    abort_after: int | None = None
    greedy: bool | None = None
    refused: bool = False


@dataclass
class Scenario:
    """One engine and what happens to it.

    runner: "v1" or "v2" model runner.
    plugin: the value of ``additional_config["triattn"]``; None: triattn is not even imported.
    off: triattn is imported by the engine, but not turned on.
    blocks: blocks of the KV cache, the null block included; None: ample.
    chunk: tokens scheduled in a step at most (chunked prefill).
    on_step: called before each step with the driver, whose methods add, abort and change policy.
        A function of a module, since it travels to another process.
    control: the policy arrives over a socket from a stand-in control plane, and can be changed: a document, or
        a mapping of ``StandIn.send``'s arguments.
    environ: environment variables of the engine's process.
    on_finish: called once after the last step; its value becomes Run.extra.
    """

    model: str = "llama"
    runner: str = "v1"
    plugin: dict[str, Any] | None = None
    off: bool = False
    requests: list[Request] = field(default_factory=list)
    blocks: int | None = None
    block_size: int = 32
    chunk: int = 2048
    max_model_len: int = 4096
    max_num_seqs: int = 32
    prefix_caching: bool = False
    async_scheduling: bool = False
    tp: int = 1
    priorities: bool = False
    log_probs: bool = True
    check_steps: bool = True
    max_steps: int = 20000
    control: dict[str, Any] | None = None
    environ: dict[str, str] = field(default_factory=dict)
    on_step: Callable[[Driver], None] | None = None
    on_finish: Callable[[Driver], Any] | None = None
    engine_args: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        return SPECS[self.model]


@dataclass
class Outcome:
    """What a request got.

    tokens, and per token: log_probs float32 [n, vocab] it was drawn from, incarnation int64 [n] (number
    of preemptions before the step that computed it), step int64 [n].
    rounds: by incarnation.
    cached_tokens: prompt tokens found in the prefix cache at its first admission that found any.
    finish: "length", "abort", ... as the engine says; "refused" if it was never admitted; None: unfinished.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    log_probs: np.ndarray | None = None
    incarnation: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    rounds: dict[int, list[Round]] = field(default_factory=dict)
    finish: str | None = None
    aborted: bool = False
    error: str | None = None
    cached_tokens: int = 0

    @property
    def preemptions(self) -> int:
        """Incarnations lost, as far as the tokens show."""
        return max(self.incarnation, default=0)

    @property
    def round_count(self) -> int:
        """Rounds over all incarnations."""
        return sum(map(len, self.rounds.values()))


@dataclass
class Run:
    """What an engine did in a scenario. graph_steps: decode steps that replayed a CUDA graph, where it is counted."""

    scenario: Scenario
    outcomes: dict[str, Outcome]
    steps: int
    seconds: float
    preemptions: int
    total_blocks: int
    peak_used_blocks: int
    peak_running: int
    free_blocks: int
    acks: list[Any] = field(default_factory=list)
    extra: Any = None
    version: str = ""
    graph_steps: int = 0

    def __getitem__(self, request_id: str) -> Outcome:
        return self.outcomes[request_id]

    @property
    def rounds(self) -> int:
        """Rounds over all requests and incarnations."""
        return sum(o.round_count for o in self.outcomes.values())
