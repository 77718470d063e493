"""Runs in the engine's process: builds the engine of a scenario, steps it, looks at everything."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import invariants
from .models import checkpoint
from .oracle import Round
from .scenario import Outcome, Request, Run, Scenario

CONTENT_EVERY = 8
"""Steps between comparisons of all hashed blocks' contents."""


@contextlib.contextmanager
def forced_async_scheduling(force: bool) -> Iterator[None]:
    """vLLM switches async scheduling off on the CPU; keep it on while an engine is built."""
    if not force:
        yield
        return
    from vllm.platforms import current_platform

    cls = type(current_platform)
    original = cls.check_and_update_config

    @classmethod
    def check(_: type, vllm_config: Any) -> None:
        original(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    cls.check_and_update_config = check
    try:
        yield
    finally:
        cls.check_and_update_config = original


def async_copies_on_cpu() -> None:
    """Let the runners' asynchronous outputs work where there are no CUDA streams and events."""
    import torch

    class Null:
        device = torch.device("cpu")

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

        def __enter__(self) -> None: ...

        def __exit__(self, *args: Any) -> None: ...

    torch.Event = torch.cuda.Event = Null
    torch.cuda.Stream = torch.cuda.stream = Null
    torch.cuda.current_stream = lambda *args: Null()
    torch.cuda.default_stream = lambda *args: Null()
    # Pinned memory needs an accelerator.
    for name in ("pin_memory",):
        setattr(torch.Tensor, name, lambda self, *args, **kwargs: self)


class Driver:
    """One engine under one scenario. Its public methods are for ``Scenario.on_step``."""

    def __init__(self, scenario: Scenario, job: Path) -> None:
        self.scenario = scenario
        self.job = job
        self.step = 0
        self.outcomes: dict[str, Outcome] = {}
        self._internal: dict[str, str] = {}
        self._external: dict[str, str] = {}
        self._planned: dict[int, tuple[Any, dict[str, int]]] = {}
        self._last: dict[str, int] = {}
        self._emitting: dict[str, int] = {}
        self._evicted: dict[str, tuple[int, int]] = {}
        self._logprobs: dict[str, list[np.ndarray]] = {}
        self._stepped: set[str] = set()
        self._preemptions = 0
        self._peak_blocks = 0
        self._peak_running = 0
        self._future = sorted(scenario.requests, key=lambda r: r.arrive)
        self._reader: Any = None
        self.control: Any = None
        self._build()

    # The engine.

    def _environment(self) -> None:
        scenario = self.scenario
        os.environ.update(scenario.environ)
        os.environ["VLLM_PLUGINS"] = (
            "triattn" if scenario.plugin or scenario.off or scenario.control else "none"
        )
        if scenario.tp > 1:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(i) for i in range(scenario.tp))
            directory = self.job / "rounds"
            directory.mkdir()
            os.environ["TRIATTN_OBSERVE_DIR"] = str(directory)
            from .trace import DirectoryReader

            self._reader = DirectoryReader(directory, scenario.tp)
        elif os.environ["VLLM_PLUGINS"] == "triattn":
            from triattn.engines import observe

            observe.observers.append(
                lambda r: self._round(r.request_id, Round(r.computed, r.evicted_total, r.kept.numpy().copy()))
            )
        if scenario.control is not None:
            from .control import StandIn

            self.control = StandIn(self.job, scenario.control)
            os.environ["TRIATTN_SOCKET"] = self.control.endpoint

    def _build(self) -> None:
        scenario = self.scenario
        self._environment()
        import vllm
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        spec = scenario.spec
        blocks = scenario.blocks or 4 * scenario.max_model_len // scenario.block_size
        arguments: dict[str, Any] = {
            "model": str(checkpoint(spec)),
            "dtype": "float32",
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "max_model_len": scenario.max_model_len,
            "max_num_batched_tokens": scenario.chunk,
            "max_num_seqs": min(scenario.max_num_seqs, scenario.chunk),
            "block_size": scenario.block_size,
            "enable_prefix_caching": scenario.prefix_caching,
            "kv_cache_memory_bytes": blocks * spec.block_bytes(scenario.block_size, scenario.tp),
            "max_logprobs": -1,
            "tensor_parallel_size": scenario.tp,
            "scheduling_policy": "priority" if scenario.priorities else "fcfs",
            "disable_log_stats": True,
            "seed": 0,
        }
        if scenario.plugin is not None:
            arguments["additional_config"] = {"triattn": scenario.plugin}
        if scenario.async_scheduling:
            async_copies_on_cpu()
        with forced_async_scheduling(scenario.async_scheduling):
            self.engine = LLMEngine.from_engine_args(EngineArgs(**(arguments | scenario.engine_args)))
        self.version = vllm.__version__
        self.core = self.engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self.pool = self.scheduler.kv_cache_manager.block_pool
        assert bool(self.core.batch_queue) or scenario.async_scheduling == (self.core.batch_queue is not None)
        self.runner = None
        self._cached_blocks = None
        if scenario.tp == 1:
            self.runner = self.core.model_executor.driver_worker.worker.model_runner
            assert (scenario.runner == "v2") == hasattr(self.runner, "req_states")
            if scenario.prefix_caching:
                self._cached_blocks = invariants.CachedBlocks(self.runner.kv_caches, len(self.pool.blocks))
        self._watch_scheduler()

    def _watch_scheduler(self) -> None:
        """Tie every step's outputs and rounds to the incarnations of its requests."""
        scheduler = self.scheduler
        schedule, update = scheduler.schedule, scheduler.update_from_output

        def watched_schedule(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            # A round may be due for a request that runs but has nothing to compute in this step.
            self._last = {name: request.num_preemptions for name, request in scheduler.requests.items()}
            self._stepped = set(output.num_scheduled_tokens)
            self._planned[id(output)] = output, self._last
            self._preemptions += len(getattr(output, "preempted_req_ids", None) or ())
            return output

        def watched_update(output: Any, *args: Any, **kwargs: Any) -> Any:
            _, self._emitting = self._planned.pop(id(output))
            return update(output, *args, **kwargs)

        scheduler.schedule, scheduler.update_from_output = watched_schedule, watched_update

    def _round(self, internal: str, this: Round) -> None:
        incarnation = self._last[internal]
        self.outcomes[self._external[internal]].rounds.setdefault(incarnation, []).append(this)
        self._evicted[internal] = incarnation, this.evicted_total

    def evicted(self, internal: str) -> int:
        """E of a request, from the rounds that were observed."""
        incarnation, evicted = self._evicted.get(internal, (-1, 0))
        request = self.scheduler.requests.get(internal)
        return evicted if request is not None and request.num_preemptions == incarnation else 0

    # For on_step.

    def add(self, request: Request) -> None:
        """Add a request now."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError

        scenario = self.scenario
        outcome = self.outcomes[request.id] = Outcome(request)
        greedy = scenario.runner == "v2" if request.greedy is None else request.greedy
        options = {"triattn_budget": request.budget, "triattn_tags": request.tags}
        params = SamplingParams(
            temperature=0.0 if greedy else 1.0,
            max_tokens=request.max_tokens,
            ignore_eos=True,
            detokenize=False,
            logprobs=-1 if scenario.log_probs else None,
            extra_args={name: value for name, value in options.items() if value is not None} or None,
        )
        try:
            internal = self.engine.add_request(
                request.id, {"prompt_token_ids": request.prompt}, params, priority=request.priority
            )
        except (ValueError, VLLMValidationError) as error:
            outcome.finish, outcome.error = "refused", str(error)
            return
        if internal not in self.scheduler.requests:
            internal = next(n for n in self.scheduler.requests if n.startswith(f"{request.id}-"))
        self._internal[request.id], self._external[internal] = internal, request.id

    def abort(self, request_id: str) -> None:
        """Abort a request now; nothing happens if it is over."""
        outcome = self.outcomes[request_id]
        if outcome.finish is None:
            self.engine.engine_core.abort_requests([self._internal[request_id]])
            outcome.finish, outcome.aborted = "abort", True

    def set_policy(self, policy: dict[str, Any], **more: Any) -> int:
        """Send a policy from the stand-in control plane (``StandIn.send``); its revision."""
        return self.control.send(policy, **more)

    def set_policy_and_wait(self, policy: dict[str, Any], **more: Any) -> int:
        """Send a policy and wait until the engine promises it for the next step."""
        revision = self.set_policy(policy, **more)
        self.wait_for(lambda: revision in dict(self.control.acks))
        return revision

    def wait_for_events(self, rounds: int) -> None:
        """Wait until the stand-in has heard of so many rounds."""
        self.wait_for(lambda: sum(type(e).__name__ == "RoundEvent" for e in self.control.events) >= rounds)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        """Let other threads work until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds:.0f} s in vain")
            time.sleep(0.005)

    @property
    def unfinished(self) -> list[str]:
        """Ids of requests added and not over."""
        return [name for name, o in self.outcomes.items() if o.finish is None]

    # The loop.

    def _arrivals_and_aborts(self) -> None:
        while self._future and self._future[0].arrive <= self.step:
            self.add(self._future.pop(0))
        for name in self.unfinished:
            outcome = self.outcomes[name]
            at, after = outcome.request.abort_at, outcome.request.abort_after
            if (at is not None and self.step >= at) or (after is not None and len(outcome.tokens) >= after):
                self.abort(name)

    def _collect(self, outputs: Any) -> None:
        if self._reader is not None:
            for internal, this in self._reader.new():
                self._round(internal, this)
        for output in outputs.outputs:
            outcome = self.outcomes[self._external[output.request_id]]
            if outcome.finish == "abort":
                continue
            n = len(output.new_token_ids)
            outcome.tokens.extend(output.new_token_ids)
            outcome.incarnation.extend([self._emitting[output.request_id]] * n)
            outcome.step.extend([self.step] * n)
            if output.new_logprobs is not None and n:
                ids, values = output.new_logprobs.logprob_token_ids, output.new_logprobs.logprobs
                rows = np.full((n, self.scenario.spec.vocab), np.nan, np.float32)
                np.put_along_axis(rows, np.asarray(ids)[:n].astype(np.int64), np.asarray(values)[:n], axis=-1)
                self._logprobs.setdefault(outcome.request.id, []).append(rows)
            if output.prefill_stats is not None and not outcome.cached_tokens:
                outcome.cached_tokens = output.prefill_stats.num_cached_tokens
            if output.finish_reason is not None:
                outcome.finish = str(output.finish_reason)

    def _check(self) -> None:
        invariants.check_pool(self.scheduler)
        invariants.check_lengths(self.scheduler, self.evicted)
        if self.runner is not None:
            invariants.check_tables(self.scheduler, self.runner, self._stepped)
        if self._cached_blocks is not None and self.step % CONTENT_EVERY == 0:
            self._cached_blocks.check(self.pool)

    def run(self) -> Run:
        """Step until nothing is left to do."""
        scenario = self.scenario
        total = self.pool.num_gpu_blocks - 1
        start = time.monotonic()
        while True:
            self._arrivals_and_aborts()
            more = bool(scenario.on_step(self)) if scenario.on_step else False
            if not (self._future or self.unfinished or more or self._has_work()):
                break
            if self.step >= scenario.max_steps:
                raise AssertionError(f"not done after {self.step} steps: {self.unfinished[:8]} unfinished")
            self._collect(self.engine.engine_core.get_output())
            if scenario.check_steps:
                try:
                    self._check()
                except invariants.Broken as error:
                    raise invariants.Broken(f"after step {self.step}: {error}") from None
            self._peak_blocks = max(self._peak_blocks, total - self.pool.get_num_free_blocks())
            self._peak_running = max(self._peak_running, len(self.scheduler.running))
            self.step += 1
        seconds = time.monotonic() - start
        invariants.check_pool(self.scheduler)
        for name, rows in self._logprobs.items():
            self.outcomes[name].log_probs = np.concatenate(rows)
        extra = scenario.on_finish(self) if scenario.on_finish else None
        return Run(
            scenario=scenario,
            outcomes=self.outcomes,
            steps=self.step,
            seconds=seconds,
            preemptions=self._preemptions,
            total_blocks=total,
            peak_used_blocks=self._peak_blocks,
            peak_running=self._peak_running,
            free_blocks=self.pool.get_num_free_blocks(),
            acks=self.control.acks if self.control is not None else [],
            extra=extra,
            version=self.version,
        )

    def _has_work(self) -> bool:
        return bool(self.scheduler.has_requests() or self.core.batch_queue)
