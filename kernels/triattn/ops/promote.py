"""Places given away before the best scores compete for the rest: chosen entries of the final scores become +inf.

The oracle is triattn.policies.quotas.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triattn.ops.common import (
    EVICTED,
    KEEP,
    PREVIOUS,
    RESIDENT,
    evictable_span,
    field,
    per_round,
    row_positions,
    table_of,
)
from triattn.ops.select import sort_key


@triton.jit
def segment_key(
    final,
    by,
    index,
    resident,
    table,
    slots,
    previous,
    evicted,
    free,
    recent,
    segment,
    SEGMENTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """sort_key of `by` for the entries that may be promoted, 0 for the others."""
    valid = index < resident
    eligible = valid & (tl.load(final + index, mask=valid, other=0.0) != float("inf"))
    if SEGMENTS > 1:
        position = row_positions(slots, table, index, valid, previous, evicted, BLOCK_SIZE)
        length = tl.maximum(recent - free, 1).to(tl.int64)
        # The difference is negative for pinned entries only.
        mine = tl.maximum(position - free, 0).to(tl.int64) * SEGMENTS // length
        eligible = eligible & (tl.minimum(mine, SEGMENTS - 1) == segment)
    return sort_key(tl.load(by + index, mask=valid, other=0.0), eligible)


@per_round("table_stride", "raw_stride16", "sinks", "window", "segment_share", "fields", "tables")
def promote_kernel(
    final,  # float32 [requests, CHOICES, raw_stride16 * 16], in and out
    by,  # float32, likewise: the scores that choose; `final` itself for quotas
    shares,  # int32 [CHOICES], of 65,536; unless SEGMENTED
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    table_stride,
    raw_stride16,
    sinks,
    window,
    segment_share,
    position_layer_stride,
    position_head_stride,
    HEADS: tl.constexpr,
    CHOICES: tl.constexpr,
    SEGMENTED: tl.constexpr,
    SEGMENTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    COUNT: tl.constexpr,
):
    """One program: one choice of one request; as in select, BLOCK entries and four bits of the threshold at a time."""
    program = tl.program_id(0)
    request = program // CHOICES
    choice = program % CHOICES
    resident = field(fields, request, RESIDENT)
    keep = field(fields, request, KEEP)
    if keep >= resident:
        return
    table = table_of(fields, tables, table_stride, request)
    # The first row of a shared choice: head `choice` of layer 0, or the row itself.
    slots = (
        positions
        + (choice // HEADS).to(tl.int64) * position_layer_stride
        + (choice % HEADS) * position_head_stride
    )
    previous, evicted = field(fields, request, PREVIOUS), field(fields, request, EVICTED)
    free, recent = evictable_span(fields, request, sinks, window)
    offset = program.to(tl.int64) * raw_stride16 * 16
    final += offset
    by += offset
    taken = 0
    for start in range(0, resident, BLOCK):
        index = start + tl.arange(0, BLOCK)
        score = tl.load(final + index, mask=index < resident, other=0.0)
        taken += tl.sum((score == float("inf")).to(tl.int32), axis=0)
    share = segment_share if SEGMENTED else tl.load(shares + choice)
    places = ((tl.maximum(keep - taken, 0).to(tl.int64) * share) >> 16).to(tl.int32) // SEGMENTS
    digit = tl.arange(0, 16)
    for segment in range(SEGMENTS):
        threshold = tl.full([], 0, tl.uint32)
        shift = tl.full([], 28, tl.uint32)
        for _ in range(8):
            candidates = threshold | (digit.to(tl.uint32) << shift)
            count = tl.zeros([16], tl.int32)
            for start in range(0, resident, COUNT):
                index = start + tl.arange(0, COUNT)
                key = segment_key(
                    final, by, index, resident, table, slots, previous, evicted, free, recent, segment,
                    SEGMENTS, BLOCK_SIZE,
                )  # fmt: skip
                count += tl.sum((key[:, None] >= candidates[None, :]).to(tl.int32), axis=0)
            best = tl.sum(((count >= places) & (digit > 0)).to(tl.int32), axis=0)
            threshold = threshold | (best.to(tl.uint32) << shift)
            shift = shift - 4
        above = 0
        for start in range(0, resident, BLOCK):
            index = start + tl.arange(0, BLOCK)
            key = segment_key(
                final, by, index, resident, table, slots, previous, evicted, free, recent, segment,
                SEGMENTS, BLOCK_SIZE,
            )  # fmt: skip
            above += tl.sum((key > threshold).to(tl.int32), axis=0)
        room = places - above
        equals = 0
        for start in range(0, resident, BLOCK):
            index = start + tl.arange(0, BLOCK)
            key = segment_key(
                final, by, index, resident, table, slots, previous, evicted, free, recent, segment,
                SEGMENTS, BLOCK_SIZE,
            )  # fmt: skip
            equal = ((key == threshold) & (key > 0)).to(tl.int32)
            chosen = (key > threshold) | ((equal != 0) & (equals + tl.cumsum(equal, axis=0) <= room))
            equals += tl.sum(equal, axis=0)
            # Loads of this pass come before its stores, and those before the next segment's loads.
            tl.debug_barrier()
            tl.store(final + index, tl.full([BLOCK], float("inf"), tl.float32), mask=chosen)
        tl.debug_barrier()
