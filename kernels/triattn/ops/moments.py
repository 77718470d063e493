"""Moments that z-scores need, of channels that other kernels than the score kernel filled."""

from __future__ import annotations

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
from triattn.ops.score import observe, store_moments


@per_round("table_stride", "chunks", "tiles", "raw_stride16", "sinks", "window", "fields", "tables")
def moments_kernel(
    partials,  # float32 [requests, LAYERS, HEADS, chunks, 2 * CHANNELS + 1], out: of the last EXTRAS channels
    raw,  # float32 [requests, LAYERS, HEADS, CHANNELS, raw_stride16 * 16]
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    table_stride,
    chunks,
    tiles,
    raw_stride16,
    sinks,
    window,
    position_layer_stride,
    position_head_stride,
    LAYERS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    EXTRAS: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: one of the last EXTRAS channels of a chunk of one (request, layer, KV head), as in score."""
    program = tl.program_id(0)
    extra = program % EXTRAS
    chunk = (program // EXTRAS) % chunks
    row = program // (EXTRAS * chunks)
    head = row % HEADS
    layer = (row // HEADS) % LAYERS
    request = row // (HEADS * LAYERS)
    resident = field(fields, request, RESIDENT)
    if field(fields, request, KEEP) >= resident:
        return
    channel = CHANNELS - EXTRAS + extra
    table = table_of(fields, tables, table_stride, request)
    slots = positions + layer.to(tl.int64) * position_layer_stride + head * position_head_stride
    previous, evicted = field(fields, request, PREVIOUS), field(fields, request, EVICTED)
    free, recent = evictable_span(fields, request, sinks, window)
    values = raw + (row.to(tl.int64) * CHANNELS + channel) * raw_stride16 * 16
    seen = tl.zeros([TILE, 1], tl.float32)
    mean, square = seen, seen
    first = chunk * tiles * TILE
    for start in range(first, tl.minimum(first + tiles * TILE, resident), TILE):
        index = start + tl.arange(0, TILE)
        valid = index < resident
        position = row_positions(slots, table, index, valid, previous, evicted, BLOCK_SIZE)
        use = (valid & (position >= free) & (position < recent))[:, None]
        value = tl.load(values + index, mask=valid, other=0.0)[:, None]
        seen += use.to(tl.float32)
        mean, square = observe(value, mean, square, use, seen, True)
    out = partials + (row.to(tl.int64) * chunks + chunk) * (2 * CHANNELS + 1) + channel
    one = tl.arange(0, 1)
    store_moments(out + one, mean, square, seen, one < 1, CHANNELS)
