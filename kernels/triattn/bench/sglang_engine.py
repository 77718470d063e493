"""One engine process of `triattn bench engine --backend sglang`: the arms of ``triattn.bench.engine`` on SGLang.

    python -m triattn.bench.sglang_engine '{"arms": ["bound", "full"], …}'

SGLang's scheduler runs its own loop in the main thread, with overlap scheduling as ever; it asks for requests once an
iteration, and waits there until the measuring thread lets it go on.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import Any

from triattn.bench.engine import Bench, measure, random_statistics, write_model

CONTEXT = 36864
MOST_REQUESTS = 384


def _settle() -> None:
    """Wait for the device: what the measuring thread launches is on another stream than the scheduler's."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Feed:
    """The sockets that the scheduler reads from: one iteration's requests for each turn of the measuring thread."""

    def __init__(self) -> None:
        self.inbox: list[Any] = []
        self._go: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._open = False

    def take(self, _: int = 0) -> Any:
        """Called by the scheduler until it raises; the first call of an iteration waits for ``turn``."""
        import zmq

        if not self._open:
            self._done.put(True)
            self._go.get()
            self._open = True
        if self.inbox:
            return self.inbox.pop(0)
        self._open = False
        raise zmq.Again

    def turn(self) -> None:
        """Let the scheduler do one iteration, and wait for its end."""
        self._go.put(True)
        self._done.get()

    def wait(self) -> None:
        """Wait until the scheduler asks for the first time."""
        self._done.get()

    def release(self) -> None:
        """Let it go for good."""
        self._go.put(True)


class Nobody:
    """A socket without messages."""

    def take(self, _: int = 0) -> Any:
        """Nothing."""
        import zmq

        raise zmq.Again


class SglangBench(Bench):
    """One scheduler of SGLang, stepped from another thread: no front end, no detokenizer."""

    def __init__(self, options: dict[str, Any]) -> None:
        import random

        self.options = options
        self.shape: str = options["model"]
        model = write_model(self.shape, Path(options["scratch"]) / self.shape)
        if any(arm not in ("bound", "full") for arm in options["arms"]):
            from msgspec import json as msgjson
            from msgspec.structs import replace

            from triattn.config import preset

            options["statistics"] = options.get("statistics") or random_statistics(model)
            os.environ["TRIATTN_POLICY"] = msgjson.encode(replace(preset("triattention"), budget=0)).decode()
            os.environ["TRIATTN_STATS"] = options["statistics"]
        arguments = {
            "model_path": model,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "context_length": CONTEXT,
            "max_running_requests": MOST_REQUESTS,
            # SGLang's own limit follows the GPU's memory; beyond it decode steps run without graphs.
            "cuda_graph_max_bs_decode": MOST_REQUESTS,
            "random_seed": 0,
            **options.get("engine", {}),
        }
        start = time.monotonic()
        self.scheduler = self._scheduler(arguments)
        self.start_seconds = time.monotonic() - start
        self.vocab = self.scheduler.model_config.vocab_size
        self.random = random.Random(0)
        self.added = self._tokens = 0
        self.most_requests: int = arguments["max_running_requests"]
        allocator = self.scheduler.token_to_kv_pool_allocator
        self.block_size: int = allocator.page_size
        self.cache_tokens: int = allocator.size
        self.feed = Feed()
        self._listen()

    def _scheduler(self, arguments: dict[str, Any]) -> Any:
        from sglang.srt.managers.scheduler import Scheduler
        from sglang.srt.plugins import load_plugins
        from sglang.srt.runtime_context import publish
        from sglang.srt.server_args import PortArgs, ServerArgs

        load_plugins()
        server = ServerArgs(**arguments)
        ports = PortArgs.init_new(server)
        publish(server, role="scheduler")
        return Scheduler(server, ports, 0, 0, 0, 0, 0, 0, None)

    def _listen(self) -> None:
        import dataclasses

        from sglang.srt.managers.scheduler_components import request_receiver

        scheduler = self.scheduler
        request_receiver.sock_recv = lambda socket, flags=0: socket.take(flags)
        scheduler.request_receiver = dataclasses.replace(
            scheduler.request_receiver, recv_from_tokenizer=self.feed, recv_from_rpc=Nobody()
        )
        process = scheduler.process_batch_result

        def counted(batch: Any, *args: Any, **kwargs: Any) -> Any:
            before = sum(len(r.output_ids) for r in batch.reqs)
            result = process(batch, *args, **kwargs)
            self._tokens += sum(len(r.output_ids) for r in batch.reqs) - before
            return result

        scheduler.process_batch_result = counted

    @property
    def _running(self) -> list[Any]:
        return [r for r in self.scheduler.running_batch.reqs if not r.finished()]

    def lengths(self) -> list[int]:
        """See Bench."""
        hooks = self.hooks
        if hooks is None:
            return [r.kv_committed_len for r in self._running]
        return [r.kv_committed_len + hooks.evicted(r) for r in self._running]

    def resident(self) -> list[int]:
        """See Bench."""
        return [r.kv_committed_len for r in self._running]

    def use(self, policy: Any, *, warm_up: bool) -> None:
        """See Bench."""
        _settle()
        self.hooks._use(policy, warm_up=warm_up)
        _settle()

    def counters(self) -> Any:
        """See Bench."""
        return self.hooks.reports.counters()

    def about(self) -> dict[str, str]:
        """See Bench."""
        import sglang

        runner = "overlap" if self.scheduler.enable_overlap else "normal"
        return {"name": "sglang", "version": sglang.__version__, "runner": runner}

    def add(self, length: int, tokens: int = 30000) -> None:
        """See Bench."""
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.observability.req_time_stats import APIServerReqTimeStats
        from sglang.srt.sampling.sampling_params import SamplingParams

        params = SamplingParams(temperature=0.0, max_new_tokens=tokens, ignore_eos=True)
        params.normalize(None)
        prompt = array("q", (self.random.randrange(10, self.vocab) for _ in range(length)))
        self.feed.inbox.append(
            TokenizedGenerateReqInput(
                rid=f"bench-{self.added}.",
                input_text=None,
                input_ids=prompt,
                input_embeds=None,
                mm_inputs=None,
                token_type_ids=None,
                sampling_params=params,
                return_logprob=False,
                logprob_start_len=-1,
                top_logprobs_num=0,
                token_ids_logprob=None,
                stream=False,
                time_stats=APIServerReqTimeStats(),
            )
        )
        self.added += 1

    def step(self) -> int:
        """See Bench."""
        before = self._tokens
        self.feed.turn()
        return self._tokens - before

    def drain(self) -> None:
        """See Bench."""
        from sglang.srt.managers.io_struct import AbortReq

        self.feed.inbox.append(AbortReq(rid="", abort_all=True))
        for _ in range(8):
            self.step()
        assert not self._running and not self.scheduler.waiting_queue, "requests left after an abort"
        self.scheduler.flush_cache()
        _settle()

    def prefill(self, lengths: list[int]) -> None:
        """See Bench."""
        for length in lengths:
            self.add(length)
        self.step()
        while (
            self.scheduler.waiting_queue
            or self.scheduler.chunked_req is not None
            or len(self._running) < len(lengths)
        ):
            before = self._tokens, self.scheduler.forward_ct
            self.step()
            if (self._tokens, self.scheduler.forward_ct) == before and not self._running:
                raise SystemExit("no request runs: the cache is too small")
        for _ in range(2):
            self.step()
        if len(self._running) != len(lengths):
            raise SystemExit(f"{len(self._running)} of {len(lengths)} requests run: the cache is too small")


def main() -> None:
    """Run the arms of the options given as JSON in the first argument; the last line printed is the result."""
    options = json.loads(sys.argv[1])
    # As SGLang sets them where it starts its schedulers.
    for name, value in (
        ("NCCL_CUMEM_ENABLE", "0"),
        ("NCCL_NVLS_ENABLE", "0"),
        ("CUDA_DEVICE_MAX_CONNECTIONS", "8"),
    ):
        os.environ.setdefault(name, value)
    # Admit by what requests hold, not by the 30,000 tokens that each asks for: the arms say how many run.
    os.environ.setdefault("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "1")
    bench = SglangBench(options)
    failure: list[BaseException] = []

    def work() -> None:
        bench.feed.wait()
        try:
            measure(bench, options)
        except BaseException as error:
            failure.append(error)
        bench.scheduler.gracefully_exit = True
        bench.feed.release()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    bench.scheduler.run_event_loop()
    thread.join(10)
    if failure:
        raise failure[0]
    sys.stdout.flush()
    # SGLang's own threads would keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
