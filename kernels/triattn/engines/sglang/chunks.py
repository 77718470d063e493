"""Rounds between the chunks of a prefill: a prompt far longer than the pool, and what a retracted request had, stay
inside the budget while they are computed.

SGLang counts a request's prefill in one number: ``len(prefix_indices)`` says how much is computed and how much lies
in the pool. After a round the two differ by E. SGLang goes on counting what lies in the pool; of the request's
tokens, it is given all but the first E whenever it cuts the next chunk out of them by that number. Positions are put
right where the forward batch is made.

SGLang sources: ``managers/scheduler.py`` (``stash_chunked_request``), ``managers/schedule_batch.py``
(``init_next_round_input``, ``prepare_for_extend``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from triattn.engines.sglang.requests import state_of

if TYPE_CHECKING:
    from triattn.engines.sglang.scheduler import SchedulerHooks

_BY_POSITION = ("multimodal_inputs", "input_embeds", "positional_embed_overrides", "session")


def takes_rounds(request: Any) -> bool:
    """Whether rounds may run between a request's chunks: not where SGLang cuts more than token ids by its number."""
    return all(getattr(request, name, None) is None for name in _BY_POSITION)


def logical_length(request: Any) -> int:
    """Tokens that a request has, prompt and output."""
    return len(request.origin_input_ids) + len(request.output_ids)


def refill(request: Any, evicted: int) -> None:
    """After ``init_next_round_input``: the tokens that chunks are cut from begin E later."""
    if evicted:
        request.full_untruncated_fill_ids = (request.origin_input_ids + request.output_ids)[evicted:]


def prepare_for_extend(evicted: Callable[[Any], int], original: Callable[..., Any], batch: Any) -> Any:
    """Around ``prepare_for_extend``: for its time, prompts and where their log-probs begin are E shorter, too."""
    moved = [(r, r.origin_input_ids, r.logprob_start_len) for r in batch.reqs if evicted(r)]
    if not moved:
        return original(batch)
    for request, prompt, start in moved:
        request.origin_input_ids = prompt[evicted(request) :]
        # -1: none are wanted.
        request.logprob_start_len = max(0, start - evicted(request)) if start >= 0 else start
    try:
        result = original(batch)
    finally:
        for request, prompt, start in moved:
            request.origin_input_ids, request.logprob_start_len = prompt, start
    lengths = [max(r.extend_range.end + evicted(r), len(r.origin_input_ids)) for r in batch.reqs]
    host = torch.tensor(lengths, dtype=batch.orig_seq_lens.dtype)
    if batch.orig_seq_lens.is_cuda:
        host = host.pin_memory()
    batch.orig_seq_lens = host.to(batch.orig_seq_lens.device, non_blocking=True)
    return result


def shift_positions(evicted: Callable[[Any], int], positions: torch.Tensor, batch: Any) -> None:
    """Positions int64 [tokens] of an extend batch, made from resident lengths, become logical ones in place."""
    start = 0
    for request, length in zip(batch.reqs, batch.extend_lens, strict=True):
        shift = evicted(request)
        if shift:
            positions[start : start + length] += shift
        start += length


class Chunks:
    """What happens to the one request that is in mid-prefill, between two of its chunks."""

    def __init__(self, hooks: SchedulerHooks) -> None:
        self.hooks = hooks
        self.scheduler = hooks.scheduler
        self._returned: list[Any] = []
        """Given back in mid-prefill; they queue again after the pass, when no result of theirs is on its way."""
        self._given_up: list[Any] = []
        stash = self.scheduler.stash_chunked_request

        def stash_chunked_request(request: Any) -> None:
            self._between(stash, request)

        self.scheduler.stash_chunked_request = stash_chunked_request

    def _between(self, stash: Callable[[Any], None], request: Any) -> None:
        hooks = self.hooks
        # What was computed before the first eviction is true for others as well, and goes into the radix tree.
        if not hooks.evicted(request):
            stash(request)
        hooks.before_chunk(request)
        if hooks.evicted(request):
            row = hooks.slots.pool.req_to_token[request.req_pool_idx]
            request.prefix_indices = row[: request.kv_committed_len].to(torch.int64, copy=True)
        if state_of(request).reserved and not self._fits(request):
            self._return(request)

    def _fits(self, request: Any) -> bool:
        """Whether the next chunk surely does. What was reserved at admission suffices, unless the policy has
        changed since."""
        hooks, slots = self.hooks, self.hooks.slots
        bound = hooks.bound(request)
        size = self.scheduler.chunked_prefill_size if bound is None else bound.chunk
        left = logical_length(request) - hooks.evicted(request) - request.kv_committed_len
        return min(size, left) + slots.page <= slots.allocator.available_size() + slots.tree.evictable_size()

    def _return(self, request: Any) -> None:
        from sglang.srt.managers.schedule_batch import release_req

        scheduler = self.scheduler
        release_req(
            req=request,
            remaing_req_count=0,
            server_args=scheduler.server_args,
            req_to_token_pool=scheduler.req_to_token_pool,
            token_to_kv_pool_allocator=scheduler.token_to_kv_pool_allocator,
            tree_cache=scheduler.tree_cache,
            hisparse_coordinator=None,
        )
        scheduler.chunked_req = None
        self._returned.append(request)

    def give_up(self, request: Any) -> Any:
        """A waiting request can never run: it ends after this pass.

        Returns:
            SGLang's word for stopping to add requests in this pass.
        """
        from sglang.srt.managers.schedule_policy import AddReqResult

        self._given_up.append(request)
        return AddReqResult.OTHER

    def after_pass(self) -> None:
        """The scheduler has decided what to run next."""
        scheduler = self.scheduler
        for request in self._returned:
            scheduler._add_request_to_queue(request, is_retracted=True)
        self._returned.clear()
        for request in self._given_up:
            self._abort(request)
        self._given_up.clear()

    def _abort(self, request: Any) -> None:
        from sglang.srt.disaggregation.utils import prepare_abort
        from sglang.srt.managers.io_struct import AbortReq

        slots = self.hooks.slots
        self.scheduler.waiting_queue.remove(request)
        prepare_abort(
            request,
            f"this request has {logical_length(request)} tokens, the cache holds {slots.total * slots.page}, and "
            "the policy now in force does not keep it inside; send it again with a budget of its own",
            503,
        )
        self.scheduler.ipc_channels.send_to_tokenizer.send_output(
            AbortReq(rid=request.rid, finished_reason=request.finished_reason.to_json()), request
        )
