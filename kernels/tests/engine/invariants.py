"""What must hold in the engine between any two steps, whatever happened in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch


class Broken(AssertionError):
    """An invariant of the block pool, a block table or a cached block does not hold."""


def require(condition: bool, message: str) -> None:
    """Raise Broken unless the condition holds."""
    if not condition:
        raise Broken(message)


def free_ids(pool: Any) -> list[int]:
    """Block ids in the pool's free queue, in its order."""
    return [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]


def check_pool(scheduler: Any) -> None:
    """Every block is either free, once, or held, exactly ref_cnt times."""
    pool = scheduler.kv_cache_manager.block_pool
    free = free_ids(pool)
    require(len(free) == pool.get_num_free_blocks(), "the free queue and its count disagree")
    require(len(free) == len(set(free)), "a block is free twice")
    held: Counter[int] = Counter()
    for manager in scheduler.kv_cache_manager.coordinator.single_type_managers:
        for request_id, blocks in manager.req_to_blocks.items():
            require(request_id in scheduler.requests or not blocks, f"{request_id} is gone but holds blocks")
            ids = [b.block_id for b in blocks if not b.is_null]
            require(len(ids) == len(set(ids)), f"{request_id} holds a block twice")
            held.update(ids)
    free_set = set(free)
    require(pool.null_block.block_id not in free_set, "the null block is free")
    for block in pool.blocks:
        if block.is_null:
            continue
        n = held[block.block_id]
        require(block.ref_cnt == n, f"block {block.block_id}: ref_cnt {block.ref_cnt}, held {n} times")
        require(
            (n == 0) == (block.block_id in free_set), f"block {block.block_id}: held {n} times, free or lost"
        )


def check_lengths(scheduler: Any, evicted: Callable[[str], int]) -> None:
    """Every running request holds exactly the blocks of its resident tokens."""
    for manager in scheduler.kv_cache_manager.coordinator.single_type_managers:
        for request in scheduler.running:
            resident = request.num_computed_tokens - evicted(request.request_id)
            blocks = len(manager.req_to_blocks.get(request.request_id, ()))
            want = -(-resident // manager.block_size)
            require(
                blocks == want,
                f"{request.request_id}: {blocks} blocks for {resident} resident tokens "
                f"({request.num_computed_tokens} computed)",
            )


def worker_rows(runner: Any) -> dict[str, list[int]]:
    """Block table rows (first group) of the requests in a worker's batch."""
    if hasattr(runner, "req_states"):
        tables, index = runner.block_tables, runner.req_states.req_id_to_index
        return {
            name: tables.block_tables[0].gpu[i, : int(tables.num_blocks.np[0, i])].tolist()
            for name, i in index.items()
        }
    table = runner.input_batch.block_table[0]
    rows = table.get_numpy_array()
    return {
        name: rows[i, : int(table.num_blocks_per_row[i])].tolist()
        for name, i in runner.input_batch.req_id_to_index.items()
    }


def check_tables(scheduler: Any, runner: Any, stepped: set[str]) -> None:
    """The worker's table of every request of the last step is the scheduler's."""
    manager = scheduler.kv_cache_manager.coordinator.single_type_managers[0]
    rows = worker_rows(runner)
    for request in scheduler.running:
        name = request.request_id
        if name not in stepped:
            continue
        require(name in rows, f"{name} runs but is not in the worker's batch")
        want = [b.block_id for b in manager.req_to_blocks[name]]
        require(rows[name] == want, f"{name}: worker's table {rows[name]}, scheduler's {want}")


class CachedBlocks:
    """A block that the prefix cache offers must not change while it is offered."""

    def __init__(self, caches: list[torch.Tensor], num_blocks: int) -> None:
        self._caches = [c if c.shape[0] == num_blocks else c.transpose(0, 1) for c in caches]
        self._seen: dict[int, tuple[Any, list[torch.Tensor]]] = {}
        self._pool: Any = None

    def _watch(self, pool: Any) -> None:
        """Forget blocks that the pool hands out anew: within one step they may get the same hash again, for the
        same tokens computed in another batch, which differ in the last bits."""
        self._pool = pool
        get_new_blocks = pool.get_new_blocks

        def hand_out(*args: Any, **kwargs: Any) -> Any:
            blocks = get_new_blocks(*args, **kwargs)
            for block in blocks:
                self._seen.pop(block.block_id, None)
            return blocks

        pool.get_new_blocks = hand_out

    def check(self, pool: Any) -> None:
        """Compare every hashed block with what it held when it got its hash."""
        if self._pool is not pool:
            self._watch(pool)
        for block in pool.blocks:
            i = block.block_id
            if block.block_hash is None or block.is_null:
                self._seen.pop(i, None)
                continue
            known = self._seen.get(i)
            if known is None or known[0] != block.block_hash:
                self._seen[i] = block.block_hash, [c[i].clone() for c in self._caches]
                continue
            for layer, (cache, content) in enumerate(zip(self._caches, known[1], strict=True)):
                require(
                    torch.equal(cache[i], content), f"block {i} is hashed but layer {layer} was overwritten"
                )
