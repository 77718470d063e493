"""Admission sees budgets: no room is kept for what a compressed request never holds, and its length does not count.

SGLang sources: ``sglang/srt/managers/schedule_policy.py`` (``PrefillAdder``), which reserves the whole prompt and
``max_new_tokens``; ``managers/scheduler.py`` (``init_req_max_new_tokens``), which limits both to the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from triattn.engines.sglang.chunks import logical_length
from triattn.engines.sglang.requests import BEYOND, state_of

SLACK = 3
"""Pages that are not counted on: SGLang keeps one for each request, the ends of a row and of its copies need one."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Of a request that is prefilled in chunks with rounds between them; all in tokens."""

    keep: int
    trigger: int
    chunk: int
    """Most tokens of one of its chunks, whole pages."""
    room: int
    """The pool, less the slack."""
    page: int

    @classmethod
    def of(cls, keep: int, trigger: int, chunk: int, pages: int, page: int) -> Bound | None:
        """None: the pool of so many pages has no room for one page beside the trigger."""
        room = (pages - SLACK) * page
        chunk = min(chunk, room - trigger) // page * page
        return cls(keep, trigger, chunk, room, page) if chunk > 0 else None

    @property
    def most(self) -> int:
        """Resident tokens that it never exceeds."""
        return self.trigger - 1 + self.chunk

    def need(self, prefix: int) -> int:
        """Slots of its own that it takes at most, ``prefix`` of its tokens being shared: until its first round,
        and then for private copies of what that round would overwrite."""
        return max(self.chunk, self.most - prefix) + min(prefix, self.keep) + self.page

    @property
    def most_prefix(self) -> int:
        """Shared tokens beside which what it needs surely fits: a longer match would hold the very slots that it
        waits for."""
        spare = self.room - self.most
        longest = self.room - self.chunk - self.keep if spare >= self.keep else spare
        return longest // self.page * self.page


class Bounds(Protocol):
    """What the scheduler's hooks say of a request."""

    def growth(self, request: Any, resident: int) -> int | None:
        """Tokens that a request with so many resident ones can still grow by; None: no bound."""
        ...

    def bound(self, request: Any) -> Bound | None:
        """How it is prefilled inside its budget; None: it is not."""
        ...

    def give_up(self, request: Any) -> Any:
        """End a waiting request that can never run; the answer of ``add_one_req``."""
        ...


def running_offset(bounds: Bounds, original: Callable[..., Any], adder: Any, request: Any) -> Any:
    """Around ``_get_running_request_total_token_offset``: tokens to reserve for a running request."""
    reserved = original(adder, request)
    growth = bounds.growth(request, request.kv_committed_len)
    return reserved if growth is None else min(reserved, growth)


def add_one_request(
    bounds: Bounds, original: Callable[..., Any], adder: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around ``add_one_req``: for its time, the request has and asks for no more tokens than it can come to hold."""
    tokens = request.full_untruncated_fill_ids
    growth, bound = bounds.growth(request, len(tokens)), bounds.bound(request)
    if bound is None and getattr(request, BEYOND, False):
        return bounds.give_up(request)
    if growth is None:
        return original(adder, request, *args, **kwargs)
    params = request.sampling_params
    asked, ignore_eos = params.max_new_tokens, params.ignore_eos
    params.max_new_tokens = min(asked, len(request.output_ids) + growth)
    # Without a radix cache SGLang foresees when requests that ignore EOS end, from their uncompressed lengths.
    params.ignore_eos = False
    chunk = adder.rem_chunk_tokens
    bounded = bound is not None and len(tokens) > bound.most
    if bounded:
        _shorten_match(adder.tree_cache, request, bound.most_prefix)
        prefix = len(request.prefix_indices)
        request.full_untruncated_fill_ids = tokens[: prefix + bound.need(prefix)]
        adder.rem_chunk_tokens = min(chunk, bound.chunk)
        state_of(request).reserved = True
    lowered = adder.rem_chunk_tokens
    try:
        return original(adder, request, *args, **kwargs)
    finally:
        params.max_new_tokens, params.ignore_eos = asked, ignore_eos
        request.full_untruncated_fill_ids = tokens
        # Nobody follows in the pass of a request that goes on in another chunk.
        if bounded and adder.new_chunked_req is not request:
            adder.rem_chunk_tokens += chunk - lowered


def add_chunked_request(bounds: Bounds, original: Callable[..., Any], adder: Any, request: Any) -> Any:
    """Around ``add_chunked_req``: the next chunk of a request that was admitted for its bound."""
    growth = bounds.growth(request, len(request.full_untruncated_fill_ids))
    if growth is None:
        return original(adder, request)
    params, chunk = request.sampling_params, adder.rem_chunk_tokens
    asked = params.max_new_tokens
    params.max_new_tokens = min(asked, growth)
    bound = bounds.bound(request) if state_of(request).reserved else None
    if bound is not None:
        adder.rem_chunk_tokens = min(chunk, bound.chunk)
    lowered = adder.rem_chunk_tokens
    try:
        goes_on = original(adder, request)
    finally:
        params.max_new_tokens = asked
    if goes_on is None:
        adder.rem_chunk_tokens += chunk - lowered
    return goes_on


def _shorten_match(tree: Any, request: Any, longest: int) -> None:
    """Let a request share at most ``longest`` tokens of the radix tree. It holds no lock yet."""
    if len(request.prefix_indices) <= longest:
        return
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    key = RadixKey(request.full_untruncated_fill_ids[:longest], request.extra_key)
    match = tree.match_prefix(MatchPrefixParams(key=key, req=request))
    request.prefix_indices = match.device_indices
    request.last_node, request.last_host_node = match.last_device_node, match.last_host_node
    request.best_match_node = match.best_match_node
    request.cache_protected_len = len(match.device_indices)


class LengthLimits:
    """SGLang limits a request to its pool when it arrives; one with a bound is limited by the context length."""

    def __init__(self, scheduler: Any, bounds: Bounds) -> None:
        self.scheduler = scheduler
        self.bounds = bounds
        self._own_input_limit: int = scheduler.max_req_input_len
        self._context: int = scheduler.model_config.context_len
        limit = scheduler.init_req_max_new_tokens

        def init_req_max_new_tokens(request: Any) -> None:
            self._limit(limit, request)

        scheduler.init_req_max_new_tokens = init_req_max_new_tokens

    def _limit(self, original: Callable[[Any], None], request: Any) -> None:
        scheduler = self.scheduler
        # SGLang checks the prompt's length against this right afterwards.
        scheduler.max_req_input_len = self._own_input_limit
        params = request.sampling_params
        asked, least = params.max_new_tokens, params.min_new_tokens
        original(request)
        granted = params.max_new_tokens
        longest, pool = scheduler.max_req_len, scheduler.max_total_num_tokens
        if longest >= self._context - 1 or self.bounds.bound(request) is None:
            return
        params.max_new_tokens, params.min_new_tokens = asked, least
        scheduler.max_req_len, scheduler.max_total_num_tokens = self._context - 1, 4 * self._context
        try:
            original(request)
        finally:
            scheduler.max_req_len, scheduler.max_total_num_tokens = longest, pool
        scheduler.max_req_input_len = self._context - 1 - (longest - self._own_input_limit)
        too_long = logical_length(request) >= self._own_input_limit
        if too_long or params.max_new_tokens > granted:
            setattr(request, BEYOND, True)
