"""Admission sees budgets: a compressed request never grows past its trigger, so no room is kept for more.

SGLang source: ``sglang/srt/managers/schedule_policy.py`` (``PrefillAdder``), which reserves ``max_new_tokens``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Bounds(Protocol):
    """What the scheduler's hooks say of a request's growth."""

    def growth(self, request: Any, resident: int) -> int | None:
        """Tokens that a request with so many resident ones can still grow by; None: no bound."""
        ...


def running_offset(bounds: Bounds, original: Callable[..., Any], adder: Any, request: Any) -> Any:
    """Around ``_get_running_request_total_token_offset``: tokens to reserve for a running request."""
    reserved = original(adder, request)
    growth = bounds.growth(request, request.kv_committed_len)
    return reserved if growth is None else min(reserved, growth)


def add_one_request(
    bounds: Bounds, original: Callable[..., Any], adder: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around ``add_one_req``: for its time, the request asks for no more tokens than it can come to hold."""
    growth = bounds.growth(request, len(request.full_untruncated_fill_ids))
    if growth is None:
        return original(adder, request, *args, **kwargs)
    params = request.sampling_params
    asked, ignore_eos = params.max_new_tokens, params.ignore_eos
    params.max_new_tokens = min(asked, len(request.output_ids) + growth)
    # Without a radix cache SGLang foresees when requests that ignore EOS end, from their uncompressed lengths.
    params.ignore_eos = False
    try:
        return original(adder, request, *args, **kwargs)
    finally:
        params.max_new_tokens, params.ignore_eos = asked, ignore_eos
