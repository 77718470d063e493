"""Gumbel noise for each entry, from its position. The oracle is triattn.policies.gumbel."""

from __future__ import annotations

import triton.language as tl

from triattn.ops.common import (
    COMPUTED,
    EVICTED,
    KEEP,
    PREVIOUS,
    RESIDENT,
    field,
    per_round,
    put,
    row_positions,
    table_of,
    uniform,
)


@per_round("table_stride", "tiles", "raw_stride16", "channel", "fields", "tables")
def gumbel_kernel(
    raw,  # float32 [requests, LAYERS, HEADS, CHANNELS, raw_stride16 * 16], out: one channel of it
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    ids,  # int32 [LAYERS + HEADS + 2]
    table_stride,
    tiles,
    raw_stride16,
    channel,
    weight,
    position_layer_stride,
    position_head_stride,
    LAYERS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    ADD: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: one tile of TILE entries of one (request, layer, KV head)."""
    program = tl.program_id(0)
    tile = program % tiles
    row = program // tiles
    head = row % HEADS
    layer = (row // HEADS) % LAYERS
    request = row // (HEADS * LAYERS)
    resident = field(fields, request, RESIDENT)
    if (field(fields, request, KEEP) >= resident) | (tile * TILE >= resident):
        return
    index = tile * TILE + tl.arange(0, TILE)
    valid = index < resident
    table = table_of(fields, tables, table_stride, request)
    slots = positions + layer.to(tl.int64) * position_layer_stride + head * position_head_stride
    previous, evicted = field(fields, request, PREVIOUS), field(fields, request, EVICTED)
    position = row_positions(slots, table, index, valid, previous, evicted, BLOCK_SIZE)
    seed = tl.load(ids + LAYERS + HEADS + 1)
    layer_id, head_id = tl.load(ids + layer), tl.load(ids + LAYERS + head)
    noise = uniform(seed, field(fields, request, COMPUTED), layer_id, head_id, position)
    # The middle of each cell of the draw; float64, in which it is never 0 or 1.
    value = -tl.log(-tl.log(noise.to(tl.float64) + 2.9802322387695312e-08))
    out = raw + (row.to(tl.int64) * CHANNELS + channel) * raw_stride16 * 16
    put(out, index, value.to(tl.float32), weight, valid, ADD)
