"""SGLang's two kernels that allocate pages, in torch: they are Triton's, and the CPU has no Triton.

What they compute is SGLang's own ``alloc_extend_naive`` (``mem_cache/allocator/paged.py``). For tests only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class _Launch:
    """``kernel[grid](…)`` of a plain function."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __getitem__(self, _: Any) -> Callable[..., None]:
        return self._function


def _extend(
    prefix_lens: Any, seq_lens: Any, last_loc: Any, free_pages: Any, out: Any, _: int, page: int
) -> None:
    from sglang.srt.mem_cache.allocator.paged import alloc_extend_naive

    # The allocator looks only afterwards whether there were pages enough.
    enough = torch.nn.functional.pad(free_pages, (0, int(seq_lens.sum()) // page + len(seq_lens)))
    alloc_extend_naive(prefix_lens, seq_lens, last_loc, enough, out, page, "cpu")


def _decode(seq_lens: Any, last_loc: Any, free_pages: Any, out: Any, _: int, page: int) -> None:
    _extend(seq_lens - 1, seq_lens, last_loc, free_pages, out, _, page)


def install() -> None:
    """Put them where the allocator launches its kernels."""
    from sglang.srt.mem_cache.allocator import paged

    paged.alloc_extend_kernel, paged.alloc_decode_kernel = _Launch(_extend), _Launch(_decode)
