"""Runs in the scheduler's process: builds the scheduler of a scenario, feeds it, looks at everything."""

from __future__ import annotations

import json
import os
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from engine.control import StandIn
from engine.models import checkpoint
from engine.oracle import Round
from engine.scenario import Outcome, Request, Run

from .scenario import Scenario


class Feed:
    """The socket that the scheduler reads requests from: asks the driver once an iteration of its loop."""

    def __init__(self, tick: Callable[[], list[Any]]) -> None:
        self._tick = tick
        self._waiting: list[Any] | None = None

    def take(self, _: int = 0) -> Any:
        """The next request, or zmq.Again at the end of an iteration's."""
        if self._waiting is None:
            self._waiting = self._tick()
        if not self._waiting:
            self._waiting = None
            raise zmq.Again
        return self._waiting.pop(0)


class Nobody:
    """The socket that nobody sends requests to."""

    def take(self, _: int = 0) -> Any:
        """Nothing."""
        raise zmq.Again


def _array(kept: Any) -> np.ndarray:
    return kept if isinstance(kept, np.ndarray) else kept.cpu().numpy()


class Driver:
    """One scheduler under one scenario. Its public methods are for ``Scenario.on_step``."""

    def __init__(self, scenario: Scenario, job: Path) -> None:
        self.scenario = scenario
        self.job = job
        self.outcomes: dict[str, Outcome] = {}
        self.control: Any = None
        self._reqs: dict[str, Any] = {}
        self._incarnations: dict[str, list[int]] = {}
        """Tokens that a request had when it was retracted, each time."""
        self._future = sorted(scenario.requests, key=lambda r: r.arrive)
        self._inbox: list[Any] = []
        self._retractions = self._replays = 0
        self._peak_used = self._peak_running = 0
        self._reader: Any = None
        self._ended = False
        self._failure: BaseException | None = None
        self._environment()

    # The engine.

    def _environment(self) -> None:
        scenario = self.scenario
        os.environ.update(scenario.environ)
        if scenario.strict:
            os.environ["SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY"] = "1"
            os.environ["SGLANG_CHECK_KV_PAGE_INVARIANTS"] = str(int(scenario.pages))
        if scenario.plugin is not None:
            os.environ["TRIATTN_POLICY"] = json.dumps(scenario.plugin["policy"])
            if "statistics" in scenario.plugin:
                os.environ["TRIATTN_STATS"] = scenario.plugin["statistics"]
        if scenario.control is not None:
            self.control = StandIn(self.job, scenario.control)
            os.environ["TRIATTN_SOCKET"] = self.control.endpoint
        if scenario.tp > 1:
            from engine.trace import DirectoryReader

            directory = self.job / "rounds"
            directory.mkdir()
            self._reader = DirectoryReader(directory, scenario.tp)
            os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join("0" for _ in range(scenario.tp))
            from triattn.engines import observe

            observe.observers.append(observe.DirectoryObserver(directory))
        elif scenario.plugin is not None or scenario.control is not None:
            from triattn.engines import observe

            observe.observers.append(
                lambda r: self._round(r.request_id, Round(r.computed, r.evicted_total, r.kept.numpy().copy()))
            )
            if scenario.device != "cpu":
                self._observe_later()

    def _observe_later(self) -> None:
        """What rounds keep stays on the device until the end: a host that waits for it hides what overlaps."""
        from triattn.engines.sglang.rounds import RankRounds

        def observe(_: Any, plan: Any, positions: Any) -> None:
            evicted = plan.evicted + plan.resident - plan.keep
            self._round(plan.request_id, Round(plan.computed, evicted, positions))

        RankRounds.observe = observe

    def _scheduler(self, arguments: Any, ports: Any, rank: int) -> Any:
        from sglang.srt.managers.scheduler import Scheduler
        from sglang.srt.plugins import load_plugins
        from sglang.srt.runtime_context import publish

        load_plugins()
        publish(arguments, role="scheduler")
        return Scheduler(arguments, ports, rank, rank, 0, 0, 0, 0, None)

    def _arguments(self) -> tuple[Any, Any]:
        from sglang.srt.server_args import PortArgs, ServerArgs

        scenario = self.scenario
        cuda = {
            "dtype": "bfloat16",
            "attention_backend": "triton",
            "disable_prefill_cuda_graph": True,
            "cuda_graph_bs_decode": [n for n in (1, 2, 4, 8, 16, 24) if n < scenario.max_running]
            + [scenario.max_running],
            # max_total_tokens sizes the pool; the fraction only says that other processes may take some memory.
            "mem_fraction_static": 0.8,
        }
        cpu = {
            "dtype": "float32",
            "attention_backend": "triton" if scenario.interpreted else "torch_native",
        }
        arguments = {
            "model_path": str(checkpoint(scenario.spec)),
            "device": scenario.device,
            "sampling_backend": "pytorch",
            "skip_tokenizer_init": True,
            "context_length": scenario.max_model_len,
            "max_total_tokens": scenario.tokens,
            "max_running_requests": scenario.max_running,
            "chunked_prefill_size": scenario.chunk,
            "max_prefill_tokens": scenario.chunk,
            "page_size": scenario.page,
            "disable_radix_cache": not scenario.radix,
            "disable_overlap_schedule": not scenario.overlap,
            "tp_size": scenario.tp,
            "random_seed": 0,
            "log_level": "info",
            **(cpu if scenario.device == "cpu" else cuda),
            **scenario.server,
        }
        server = ServerArgs(**arguments)
        return server, PortArgs.init_new(server)

    def run(self) -> Run:
        """Feed the scheduler's own loop until nothing is left to do."""
        arguments, ports = self._arguments()
        for rank in range(1, self.scenario.tp):
            if os.fork() == 0:
                try:
                    os.environ.pop("TRIATTN_SOCKET", None) if self.control is None else None
                    self._scheduler(arguments, ports, rank).run_event_loop()
                finally:
                    os._exit(0)
        scheduler = self.scheduler = self._scheduler(arguments, ports, 0)
        self.hooks = getattr(scheduler, "triattn", None)
        assert scheduler.enable_overlap == self.scenario.overlap
        assert scheduler.tree_cache.disable != self.scenario.radix
        self.allocator, self.tree = scheduler.token_to_kv_pool_allocator, scheduler.tree_cache
        self._listen()
        start = time.monotonic()
        scheduler.run_event_loop()
        if self._failure is not None:
            raise self._failure
        seconds = time.monotonic() - start
        for rounds in (r for o in self.outcomes.values() for r in o.rounds.values()):
            rounds[:] = [replace(r, kept=_array(r.kept)) for r in rounds]
        return self._result(seconds)

    def _listen(self) -> None:
        """Put the driver where the scheduler reads its requests, and watch retractions."""
        import dataclasses

        from sglang.srt.managers import schedule_batch
        from sglang.srt.managers.scheduler_components import request_receiver

        scheduler = self.scheduler
        request_receiver.sock_recv = lambda socket, flags=0: socket.take(flags)
        scheduler.request_receiver = dataclasses.replace(
            scheduler.request_receiver, recv_from_tokenizer=Feed(self._tick), recv_from_rpc=Nobody()
        )
        reset = schedule_batch.Req.reset_for_retract

        def watched(request: Any) -> None:
            name = request.rid[:-1]
            self._incarnations.setdefault(name, []).append(len(request.output_ids))
            self._retractions += 1
            reset(request)

        schedule_batch.Req.reset_for_retract = watched
        handle = scheduler._add_request_to_queue

        def queued(request: Any, *args: Any, **kwargs: Any) -> Any:
            self._reqs[request.rid[:-1]] = request
            return handle(request, *args, **kwargs)

        scheduler._add_request_to_queue = queued
        graphs = getattr(scheduler.tp_worker.model_runner, "decode_cuda_graph_runner", None)
        # Without graphs it is the runner of eager steps.
        if type(graphs).__name__ == "DecodeCudaGraphRunner":
            execute = graphs.execute

            def counted(*args: Any, **kwargs: Any) -> Any:
                self._replays += 1
                return execute(*args, **kwargs)

            graphs.execute = counted

    def _round(self, rid: str, this: Round) -> None:
        name = rid[:-1]
        incarnation = len(self._incarnations.get(name, ()))
        self.outcomes[name].rounds.setdefault(incarnation, []).append(this)

    # For on_step.

    @property
    def step(self) -> int:
        """Batches run so far."""
        return self.scheduler.forward_ct

    @property
    def unfinished(self) -> list[str]:
        """Ids of requests added and not over."""
        return [name for name, o in self.outcomes.items() if o.finish is None]

    def add(self, request: Request) -> None:
        """Add a request now."""
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.observability.req_time_stats import APIServerReqTimeStats
        from sglang.srt.sampling.sampling_params import SamplingParams

        outcome = self.outcomes[request.id] = Outcome(request)
        options = {"triattn_budget": request.budget, "triattn_tags": getattr(request, "tags", None)}
        options = {name: value for name, value in options.items() if value is not None}
        if options and self._refused(options, outcome):
            return
        params = SamplingParams(
            max_new_tokens=request.max_tokens,
            temperature=0.0 if request.greedy else 1.0,
            ignore_eos=True,
            custom_params=options or None,
        )
        params.normalize(None)
        self._inbox.append(
            TokenizedGenerateReqInput(
                # SGLang aborts by the beginning of an id.
                rid=f"{request.id}.",
                input_text=None,
                input_ids=array("q", request.prompt),
                input_embeds=None,
                mm_inputs=None,
                token_type_ids=None,
                sampling_params=params,
                return_logprob=self.scenario.log_probs,
                logprob_start_len=0 if self.scenario.prompt_log_probs else -1,
                top_logprobs_num=self.scenario.spec.vocab if self.scenario.log_probs else 0,
                token_ids_logprob=None,
                stream=False,
                priority=request.priority or None,
                time_stats=APIServerReqTimeStats(),
            )
        )

    def _refused(self, options: dict[str, Any], outcome: Outcome) -> bool:
        """What the API process says of the options."""
        from types import SimpleNamespace

        from triattn.engines.sglang import plugin

        manager = SimpleNamespace(server_args=SimpleNamespace(page_size=self.scenario.page))
        request = SimpleNamespace(sampling_params={"custom_params": options})
        try:
            plugin._validate_request(None, manager, request)
        except ValueError as error:
            outcome.finish, outcome.error = "refused", str(error)
            return True
        return False

    def abort(self, request_id: str) -> None:
        """Abort a request now; nothing happens if it is over."""
        from sglang.srt.managers.io_struct import AbortReq

        outcome = self.outcomes[request_id]
        if outcome.finish is None and not outcome.aborted:
            self._inbox.append(AbortReq(rid=f"{request_id}."))
            outcome.aborted = True

    def set_policy(self, policy: dict[str, Any], **more: Any) -> int:
        """Send a policy from the stand-in control plane; its revision."""
        return self.control.send(policy, **more)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        """Let other threads work until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds:.0f} s in vain")
            time.sleep(0.005)

    # The loop.

    def _tick(self) -> list[Any]:
        """Requests that arrive before the next step; called once an iteration of the scheduler's loop."""
        try:
            self._look()
            if not self._ended:
                self._arrivals_and_aborts()
                more = bool(self.scenario.on_step(self)) if self.scenario.on_step else False
                if not (self._future or self.unfinished or more or self._inbox):
                    self._end()
                elif self.step >= self.scenario.max_steps:
                    raise AssertionError(
                        f"not done after {self.step} steps: {self.unfinished[:8]} unfinished"
                    )
        except BaseException as error:
            self._failure = error
            self._end()
        inbox, self._inbox = self._inbox, []
        return inbox

    def _end(self) -> None:
        from sglang.srt.managers.io_struct import ShutdownReq

        if not self._ended:
            self._ended = True
            self._inbox.append(ShutdownReq())

    def _arrivals_and_aborts(self) -> None:
        idle = not self.unfinished
        while self._future and (self._future[0].arrive <= self.step or idle):
            self.add(self._future.pop(0))
            idle = False
        for name in self.unfinished:
            outcome = self.outcomes[name]
            at, after = outcome.request.abort_at, outcome.request.abort_after
            tokens = len(self._reqs[name].output_ids) if name in self._reqs else 0
            if (at is not None and self.step >= at) or (after is not None and tokens >= after):
                self.abort(name)

    def _look(self) -> None:
        if self._reader is not None:
            for rid, this in self._reader.new():
                self._round(rid, this)
        waiting = {id(r) for r in self.scheduler.waiting_queue}
        for name in self.unfinished:
            outcome, request = self.outcomes[name], self._reqs.get(name)
            if request is None:
                continue
            over = request.finished_reason is not None and request.req_pool_idx is None
            # Aborted before it ever ran: it has left the queue and is nowhere else.
            gone = outcome.aborted and request.req_pool_idx is None and id(request) not in waiting
            if over or gone:
                reason = type(request.finished_reason).__name__
                outcome.finish = "length" if reason == "FINISH_LENGTH" else "abort"
                self._collect(outcome, request)
        used = self.allocator.size - self.allocator.available_size() - self.tree.evictable_size()
        self._peak_used = max(self._peak_used, used)
        self._peak_running = max(self._peak_running, len(self.scheduler.running_batch.reqs))

    def _collect(self, outcome: Outcome, request: Any) -> None:
        tokens = list(request.output_ids)[: request.sampling_params.max_new_tokens]
        outcome.tokens = tokens
        bounds = self._incarnations.get(outcome.request.id, [])
        outcome.incarnation = [sum(index >= bound for bound in bounds) for index in range(len(tokens))]
        outcome.cached_tokens = request.cached_tokens
        if not self.scenario.log_probs:
            return
        found = request.logprob
        rows = np.full((len(tokens), self.scenario.spec.vocab), np.nan, np.float32)
        if found is not None and found.output_top_logprobs_val:
            for index in range(len(tokens)):
                ids = np.asarray(found.output_top_logprobs_idx[index], np.int64)
                rows[index, ids] = np.asarray(found.output_top_logprobs_val[index], np.float32)
        outcome.log_probs = rows

    def _result(self, seconds: float) -> Run:
        import sglang

        scenario = self.scenario
        return Run(
            scenario=scenario,
            outcomes=self.outcomes,
            steps=self.step,
            seconds=seconds,
            preemptions=self._retractions,
            total_blocks=self.allocator.size,
            peak_used_blocks=self._peak_used,
            peak_running=self._peak_running,
            free_blocks=self.allocator.available_size() + self.tree.evictable_size(),
            acks=self.control.acks if self.control is not None else [],
            extra=scenario.on_finish(self) if scenario.on_finish else None,
            version=sglang.__version__,
            graph_steps=self._replays,
        )
