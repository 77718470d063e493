"""Select and compact in one program, for rows that fit in its registers.

The oracles are triattn.policies and triattn.ops.torch_rounds.
"""

from __future__ import annotations

import triton.language as tl

from triattn.ops.aggregate import group_score
from triattn.ops.common import (
    COMPUTED,
    EVICTED,
    KEEP,
    PREVIOUS,
    RESIDENT,
    evictable_span,
    field,
    layer_base,
    per_round,
    row_positions,
    table_of,
    uniform,
)
from triattn.ops.compact import move_tile
from triattn.ops.select import pair_moves, select_row, sort_key

# Where a row's scores come from: its positions, raw channels, or final scores.
NOISE = tl.constexpr(0)
RAW = tl.constexpr(1)
FINAL = tl.constexpr(2)


@per_round("table_stride", "chunks", "raw_stride16", "move_stride", "sinks", "window", "fields", "tables")
def row_kernel(
    moves,  # int32 [requests, LAYERS, HEADS, 2, move_stride], scratch
    scores,  # float32: raw channels (RAW) or final scores (FINAL), rows of raw_stride16 * 16
    partials,  # float32 [requests, LAYERS, HEADS, chunks, 2 * CHANNELS + 1]: see score
    key_bases,  # int64 [GROUP_LAYERS]
    value_bases,  # int64 [GROUP_LAYERS]
    layers,  # int32 [GROUP_LAYERS]
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    weights,  # float32 [8] of each kind of term (NOISE), or [LAYERS * HEADS, sets] (RAW)
    ids,  # int32 [LAYERS + HEADS + 2]
    memory,  # float32 [PLANES, LAYERS, HEADS, blocks, BLOCK_SIZE]: what terms remember of entries
    table_stride,
    chunks,
    raw_stride16,
    move_stride,
    memory_plane,
    sinks,
    window,
    position_layer_stride,
    position_head_stride,
    k_block_stride,
    k_head_stride,
    k_token_stride,
    k_dim_stride,
    v_block_stride,
    v_head_stride,
    v_token_stride,
    v_dim_stride,
    DTYPE: tl.constexpr,
    ALIGN: tl.constexpr,
    SOURCE: tl.constexpr,
    GROUP_LAYERS: tl.constexpr,
    LAYERS: tl.constexpr,
    HEADS: tl.constexpr,
    CHOICES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_P2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERY_SETS: tl.constexpr,
    KV_SETS: tl.constexpr,
    STATS: tl.constexpr,
    GROUP_MEAN: tl.constexpr,
    CHUNKS_P2: tl.constexpr,
    RANDOM: tl.constexpr,
    RECENCY: tl.constexpr,
    BLOCK: tl.constexpr,
    PLANES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Select and compact one (request, layer, head) whose row fits in registers (BLOCK entries).

    Where a choice is shared (FINAL), each of its rows finds it by itself: that costs less than to wait for one.
    """
    program = tl.program_id(0)
    head = program % HEADS
    slot = (program // HEADS) % GROUP_LAYERS
    request = program // (HEADS * GROUP_LAYERS)
    resident = field(fields, request, RESIDENT)
    keep = field(fields, request, KEEP)
    if keep >= resident:
        return
    previous = field(fields, request, PREVIOUS)
    evicted = field(fields, request, EVICTED)
    layer = tl.load(layers + slot)
    number = (request * LAYERS + layer).to(tl.int64) * HEADS + head
    index = tl.arange(0, BLOCK)
    valid = index < resident
    table = table_of(fields, tables, table_stride, request)
    row = layer.to(tl.int64) * position_layer_stride + head * position_head_stride
    slots = positions + row
    stride = raw_stride16.to(tl.int64) * 16
    if SOURCE == FINAL:
        choice = request.to(tl.int64) * CHOICES + (layer * HEADS + head) % CHOICES
        score = tl.load(scores + choice * stride + index, mask=valid, other=0.0)
    else:
        position = row_positions(slots, table, index, valid, previous, evicted, BLOCK_SIZE)
        if SOURCE == NOISE:
            score = tl.zeros([BLOCK], tl.float32)
            if RANDOM:
                seed = tl.load(ids + LAYERS + HEADS)
                layer_id = tl.load(ids + layer)
                head_id = tl.load(ids + LAYERS + head)
                noise = uniform(seed, field(fields, request, COMPUTED), layer_id, head_id, position)
                score += noise * tl.load(weights + 4)
            if RECENCY:
                score += position.to(tl.float32) * tl.load(weights + 5)
        else:
            score = group_score(
                scores + number * CHANNELS * stride + index,
                stride,
                partials + number * chunks * (2 * CHANNELS + 1),
                chunks,
                valid,
                chunks > 0,
                weights + (layer * HEADS + head) * (QUERY_SETS + KV_SETS),
                CHANNELS,
                GROUP,
                QUERY_SETS,
                KV_SETS,
                STATS,
                GROUP_MEAN,
                CHUNKS_P2,
            )
        free, recent = evictable_span(fields, request, sinks, window)
        score = tl.where((position < free) | (position >= recent), float("inf"), score)
    kept = select_row(sort_key(score, valid), valid, keep)
    source, hole, rank = pair_moves(kept, valid, index, keep)
    if previous < keep:
        # Positions that were implied so far; holes among them get theirs with the entry that fills them.
        fresh = kept & (index >= previous) & (index < keep)
        at = tl.load(table + index // BLOCK_SIZE, mask=fresh, other=0) * BLOCK_SIZE + index % BLOCK_SIZE
        tl.store(slots + at, index + evicted, mask=fresh)
    list_base = moves + number * 2 * move_stride
    tl.store(list_base + rank, index, mask=source)
    tl.store(list_base + move_stride + rank, index, mask=hole)
    count = tl.sum(hole.to(tl.int32), axis=0)
    # The list is read back by other threads of this program.
    tl.debug_barrier()
    keys = layer_base(key_bases, slot, DTYPE, ALIGN) + head * k_head_stride
    values = layer_base(value_bases, slot, DTYPE, ALIGN) + head * v_head_stride
    for start in range(0, count, TILE):
        move_tile(
            list_base,
            move_stride,
            start,
            count,
            table,
            keys,
            values,
            slots,
            memory + row,
            memory_plane,
            previous,
            evicted,
            k_block_stride,
            k_token_stride,
            k_dim_stride,
            v_block_stride,
            v_token_stride,
            v_dim_stride,
            HEAD_DIM,
            HEAD_DIM_P2,
            BLOCK_SIZE,
            PLANES,
            TILE,
        )
