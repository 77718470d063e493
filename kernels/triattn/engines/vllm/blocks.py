"""The scheduler's side of one KV cache group: evicted counts and the blocks they free.

vLLM sources: ``vllm/v1/core/single_type_kv_cache_manager.py`` (``FullAttentionManager``) and
``vllm/v1/core/block_pool.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from triattn.plan import cdiv


@dataclass(slots=True)
class Compressed:
    """What is known of a request that has been compressed at least once since it got its blocks."""

    evicted: int
    resident: int
    """Resident tokens right after the last round."""
    rounds: int
    scored: tuple[int, int]
    """Revision and number of the policy that scored the last round."""


class GroupBlocks:
    """Evicted counts of one full-attention KV cache group, and the manager methods that must know them.

    E > 0 changes three answers of vLLM's manager (blocks to allocate, blocks allocated, blocks cached)
    and dies with the request's blocks, in one place that finish, abort and preemption all pass.
    """

    def __init__(
        self,
        manager: Any,
        peak: Callable[[str], int | None],
        on_free: Callable[[str, Compressed | None], None],
    ) -> None:
        self.manager = manager
        self.pool = manager.block_pool
        self.block_size: int = manager.block_size
        self.compressed: dict[str, Compressed] = {}
        self._peak = peak
        self._on_free = on_free
        self._install()

    def _install(self) -> None:
        manager, compressed, peak = self.manager, self.compressed, self._peak
        blocks_to_allocate = manager.get_num_blocks_to_allocate
        allocate_new_blocks = manager.allocate_new_blocks
        cache_blocks = manager.cache_blocks
        pop_blocks_for_free = manager.pop_blocks_for_free

        def get_num_blocks_to_allocate(request_id: str, num_tokens: int, *args: Any, **kwargs: Any) -> int:
            state = compressed.get(request_id)
            if state is not None:
                num_tokens -= state.evicted
            if kwargs.get("apply_admission_cap"):
                most = peak(request_id)
                if most is not None and most < num_tokens:
                    num_tokens = most
            return blocks_to_allocate(request_id, num_tokens, *args, **kwargs)

        def allocate(request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[Any]:
            state = compressed.get(request_id)
            if state is None:
                return allocate_new_blocks(request_id, num_tokens, num_tokens_main_model)
            evicted = state.evicted
            return allocate_new_blocks(request_id, num_tokens - evicted, num_tokens_main_model - evicted)

        def cache(request: Any, *args: Any, **kwargs: Any) -> None:
            # A compacted block no longer holds the tokens that its hash would promise.
            if request.request_id not in compressed:
                cache_blocks(request, *args, **kwargs)

        def pop(request_id: str) -> list[Any]:
            state = compressed.pop(request_id, None)
            self._on_free(request_id, state)
            return pop_blocks_for_free(request_id)

        manager.get_num_blocks_to_allocate = get_num_blocks_to_allocate
        manager.allocate_new_blocks = allocate
        manager.cache_blocks = cache
        manager.pop_blocks_for_free = pop

    def evicted(self, request_id: str) -> int:
        """E of a request."""
        state = self.compressed.get(request_id)
        return 0 if state is None else state.evicted

    def truncate(
        self, request_id: str, keep: int, pinned: int, prompt_len: int
    ) -> tuple[tuple[tuple[int, int, int], ...], list[Any]] | None:
        """Make rows [0, keep) of a request private and writable, and cut the blocks past them off.

        The caller frees the blocks cut off once every round of the step is planned: a block freed
        earlier could become the destination of another request's copy while it is still to be read.

        Args:
            keep: entries after the round.
            pinned: rows [0, pinned) that the round will not overwrite.
            prompt_len: prompt tokens; their blocks are worth keeping in the prefix cache.

        Returns:
            (copies as in RoundPlan, blocks to free with the tail first), or None, with nothing changed,
            when a shared block needs a private copy and the pool has no free block.
        """
        blocks = self.manager.req_to_blocks[request_id]
        pool = self.pool
        size = self.block_size
        after = cdiv(keep, size)

        shared: list[int] = []
        prompt: list[int] = []
        unhash: set[int] = set()
        for index in range(pinned // size, after):
            block = blocks[index]
            if block.ref_cnt > 1:
                shared.append(index)
            elif block.block_hash is not None:
                if (index + 1) * size <= prompt_len:
                    prompt.append(index)
                else:
                    unhash.add(block.block_id)

        free = pool.get_num_free_blocks()
        if len(shared) > free:
            return None
        # A prompt block that only this request holds stays useful to later requests if there is room
        # to move out of it; otherwise it is un-hashed and overwritten in place.
        if len(shared) + len(prompt) <= free:
            shared += prompt
        else:
            unhash.update(blocks[index].block_id for index in prompt)

        indices = sorted(shared)
        fresh = pool.get_new_blocks(len(indices)) if indices else []
        copies = []
        old = []
        for index, block in zip(indices, fresh, strict=True):
            copies.append((index, blocks[index].block_id, block.block_id))
            old.append(blocks[index])
            blocks[index] = block
        if unhash:
            pool.evict_blocks(unhash)

        tail = blocks[after:]
        del blocks[after:]
        # vLLM's own order of freeing: of what nobody can hit, the tail is reused first.
        return tuple(copies), [*reversed(tail), *reversed(old)]
