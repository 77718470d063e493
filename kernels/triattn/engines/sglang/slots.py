"""The slots of a request: which ones a round frees, and which ones it may not overwrite.

SGLang's radix tree owns the slots of a prefix, ``[0, cache_protected_len)``, and others may share them. A round
leaves them alone where it only keeps them (a pinned prompt); where it would overwrite them, the request gets
private copies first and gives the tree's lock back. Without room for copies it takes out of the tree what no other
request holds.

SGLang sources: ``sglang/srt/mem_cache/{radix_cache,common}.py`` and ``mem_cache/allocator/``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from triattn.engines.sglang.rounds import SlotCopies
from triattn.plan import cdiv


@dataclass(slots=True)
class Truncated:
    """What shortening one request did, and what remains to be done once every round of the step is planned."""

    copies: SlotCopies | None
    copied: int
    """Slots copied."""
    release: list[Callable[[], None]] = field(default_factory=list)


class Slots:
    """The pools of one scheduler."""

    def __init__(self, scheduler: Any) -> None:
        self.allocator = scheduler.token_to_kv_pool_allocator
        self.tree = scheduler.tree_cache
        self.pool = scheduler.req_to_token_pool
        self.page: int = self.allocator.page_size
        self.total: int = self.allocator.size // self.page
        """Pages of the pool."""

    @property
    def used(self) -> int:
        """Pages that hold something and could not be handed out at once."""
        free = self.allocator.available_size() + self.tree.evictable_size()
        return max(0, self.total - free // self.page)

    def pages(self, tokens: int) -> int:
        """Pages of so many tokens."""
        return cdiv(tokens, self.page)

    def truncate(self, request: Any, keep: int, pinned: int) -> Truncated | None:
        """Shorten a request to ``keep`` entries of its row, all that a round may overwrite private to it.

        Nothing is freed, and no lock given back, before ``release`` is called: a slot freed earlier could become
        the destination of another request's copy while it is still to be read.

        Args:
            pinned: entries [0, pinned) that the round keeps where they are.

        Returns:
            None, with nothing lost, when shared slots need private copies and the pool has no room for them.
        """
        index, allocated = request.req_pool_idx, request.kv.kv_allocated_len
        row = self.pool.req_to_token[index]
        done = Truncated(None, 0)
        fresh = None
        if request.cache_protected_len > pinned:
            fresh = self._take(min(request.cache_protected_len, keep))
            if fresh is None:
                self._uproot(request)
        owned = request.cache_protected_len
        if owned > pinned:
            shared = min(owned, keep)
            fresh = self._take(shared) if fresh is None else fresh
            if fresh is None:
                return None
            source = row[:shared].long()
            # The rest of the last page is the request's own too: what it decodes next goes there.
            self.pool.write((index, slice(0, shared)), fresh[:shared].to(row.dtype))
            done.copies, done.copied = SlotCopies(source, fresh[:shared]), shared
            self._leave_tree(request, done)
        first = max(self.pages(keep) * self.page, owned)
        if first < allocated:
            tail = row[first:allocated].clone()
            done.release.append(lambda: self.allocator.free_segment(tail, start_pos=first))
        request.kv_committed_len = request.kv.kv_allocated_len = keep
        return done

    def _take(self, tokens: int) -> Any:
        """Slots for so many tokens, whole pages; None where the pool has not so many."""
        count = self.pages(tokens) * self.page
        short = count - self.allocator.available_size()
        if short > 0:
            from sglang.srt.mem_cache.base_prefix_cache import EvictParams

            self.tree.evict(EvictParams(num_tokens=short))
        return self.allocator.alloc(count)

    def _uproot(self, request: Any) -> None:
        """Take out of the radix tree what only this request holds of it: no copy, and no hit for a later one."""
        tree, node = self.tree, request.last_node
        tree.dec_lock_ref(node)
        while node is not tree.root_node and not node.children and node.lock_ref == 0:
            request.cache_protected_len -= len(node.key)
            tree._delete_leaf(node)
            node = node.parent
        tree.inc_lock_ref(node)
        request.last_node = node

    def _leave_tree(self, request: Any, done: Truncated) -> None:
        node, tree = request.last_node, self.tree
        if node is not None:
            done.release.append(lambda: tree.dec_lock_ref(node))
            # Whoever releases the request gives this lock back: the root's is no lock at all.
            request.last_node = tree.root_node
        request.cache_protected_len = 0
