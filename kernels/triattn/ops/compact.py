"""Moves of kept entries into holes: K, V, position and what terms remember.

Sources lie at or beyond `keep`, holes below it. The two never overlap, so programs may move in any order. The oracle is
triattn.ops.torch_rounds.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triattn.ops.common import (
    EVICTED,
    KEEP,
    PREVIOUS,
    RESIDENT,
    field,
    layer_base,
    load_positions,
    per_round,
    table_of,
)


@triton.jit
def move_tile(
    list_base,
    move_stride,
    start,
    count,
    table,
    keys,
    values,
    slots,
    memory,
    memory_plane,
    previous,
    evicted,
    k_block_stride,
    k_token_stride,
    k_dim_stride,
    v_block_stride,
    v_token_stride,
    v_dim_stride,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_P2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PLANES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Moves `start` and on of a row's list; `keys`, `values`, `slots` and `memory` point at its layer and head."""
    number = start + tl.arange(0, TILE)
    mask = number < count
    source = tl.load(list_base + number, mask=mask, other=0)
    target = tl.load(list_base + move_stride + number, mask=mask, other=0)
    source_block = tl.load(table + source // BLOCK_SIZE, mask=mask, other=0).to(tl.int64)
    target_block = tl.load(table + target // BLOCK_SIZE, mask=mask, other=0).to(tl.int64)
    source_offset = source % BLOCK_SIZE
    target_offset = target % BLOCK_SIZE
    dim = tl.arange(0, HEAD_DIM_P2)
    wide = mask[:, None] & (dim < HEAD_DIM)[None, :]
    k_from = keys + source_block * k_block_stride + source_offset * k_token_stride
    k_to = keys + target_block * k_block_stride + target_offset * k_token_stride
    v_from = values + source_block * v_block_stride + source_offset * v_token_stride
    v_to = values + target_block * v_block_stride + target_offset * v_token_stride
    k_dim = (dim * k_dim_stride)[None, :]
    v_dim = (dim * v_dim_stride)[None, :]
    k = tl.load(k_from[:, None] + k_dim, mask=wide)
    v = tl.load(v_from[:, None] + v_dim, mask=wide)
    position = load_positions(
        slots + source_block * BLOCK_SIZE + source_offset, source, mask, previous, evicted
    )
    tl.store(k_to[:, None] + k_dim, k, mask=wide)
    tl.store(v_to[:, None] + v_dim, v, mask=wide)
    tl.store(slots + target_block * BLOCK_SIZE + target_offset, position, mask=mask)
    for plane in tl.static_range(PLANES):
        remembered = memory + plane * memory_plane
        value = tl.load(remembered + source_block * BLOCK_SIZE + source_offset, mask=mask)
        tl.store(remembered + target_block * BLOCK_SIZE + target_offset, value, mask=mask)


@per_round("table_stride", "tiles", "move_stride", "fields", "tables")
def compact_kernel(
    moves,  # int32 [requests, CHOICES, 2, move_stride]
    counts,  # int32 [requests, CHOICES]
    key_bases,  # int64 [GROUP_LAYERS]
    value_bases,  # int64 [GROUP_LAYERS]
    layers,  # int32 [GROUP_LAYERS]
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    memory,  # float32 [PLANES, LAYERS, HEADS, blocks, BLOCK_SIZE]: what terms remember of entries
    table_stride,
    tiles,
    move_stride,
    memory_plane,
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
    GROUP_LAYERS: tl.constexpr,
    HEADS: tl.constexpr,
    CHOICES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_P2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PLANES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Execute lists of moves; one program: one tile of the list of one (request, layer, head)."""
    program = tl.program_id(0)
    head = program % HEADS
    tile = (program // HEADS) % tiles
    slot = (program // (HEADS * tiles)) % GROUP_LAYERS
    request = program // (HEADS * tiles * GROUP_LAYERS)
    if field(fields, request, KEEP) >= field(fields, request, RESIDENT):
        return
    layer = tl.load(layers + slot)
    # A choice covers all rows, a head's rows or one row: its number is the row's, modulo their count.
    choice = request.to(tl.int64) * CHOICES + (layer * HEADS + head) % CHOICES
    count = tl.load(counts + choice)
    if tile * TILE >= count:
        return
    row = layer.to(tl.int64) * position_layer_stride + head * position_head_stride
    move_tile(
        moves + choice * 2 * move_stride,
        move_stride,
        tile * TILE,
        count,
        table_of(fields, tables, table_stride, request),
        layer_base(key_bases, slot, DTYPE, ALIGN) + head * k_head_stride,
        layer_base(value_bases, slot, DTYPE, ALIGN) + head * v_head_stride,
        positions + row,
        memory + row,
        memory_plane,
        field(fields, request, PREVIOUS),
        field(fields, request, EVICTED),
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
