"""One number of each key or value: its length, the logarithm of that, or its range. Read once, in chunks.

The oracle is triattn.policies.magnitude.
"""

from __future__ import annotations

import triton.language as tl

from triattn.ops.common import KEEP, RESIDENT, field, layer_base, per_round, put, table_of
from triattn.ops.products import key_rows, load_dims

LENGTH = tl.constexpr(0)
LOG_LENGTH = tl.constexpr(1)
RANGE = tl.constexpr(2)
LOG_FLOOR = tl.constexpr(1e-20)


@per_round("table_stride", "chunks", "tiles", "raw_stride16", "channel", "fields", "tables")
def magnitude_kernel(
    raw,  # float32 [requests, LAYERS, HEADS, CHANNELS, raw_stride16 * 16], out: one channel of it
    bases,  # int64 [GROUP_LAYERS]: addresses of K or V
    scales,  # float32 [LAYERS]: what a stored number is multiplied by
    layers,  # int32 [GROUP_LAYERS]
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
    table_stride,
    chunks,
    tiles,
    raw_stride16,
    channel,
    weight,
    block_stride,
    head_stride,
    token_stride,
    dim_stride,
    DTYPE: tl.constexpr,
    ALIGN: tl.constexpr,
    GROUP_LAYERS: tl.constexpr,
    LAYERS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_P2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    WHAT: tl.constexpr,
    ADD: tl.constexpr,
    TILE: tl.constexpr,
):
    """A chunk is `tiles` tiles of TILE entries of one (request, layer, KV head)."""
    program = tl.program_id(0)
    head = program % HEADS
    chunk = (program // HEADS) % chunks
    slot = (program // (HEADS * chunks)) % GROUP_LAYERS
    request = program // (HEADS * chunks * GROUP_LAYERS)
    resident = field(fields, request, RESIDENT)
    if field(fields, request, KEEP) >= resident:
        return
    layer = tl.load(layers + slot)
    row = (request * LAYERS + layer).to(tl.int64) * HEADS + head
    out = raw + (row * CHANNELS + channel) * raw_stride16 * 16
    table = table_of(fields, tables, table_stride, request)
    base = layer_base(bases, slot, DTYPE, ALIGN) + head * head_stride
    scale = tl.load(scales + layer)
    dim = tl.arange(0, HEAD_DIM_P2)
    have = (dim < HEAD_DIM)[None, :]
    first = chunk * tiles * TILE
    for start in range(first, tl.minimum(first + tiles * TILE, resident), TILE):
        index = start + tl.arange(0, TILE)
        rows = key_rows(base, table, index, resident, block_stride, token_stride, BLOCK_SIZE)
        entries = load_dims(rows, dim, dim_stride, HEAD_DIM, HEAD_DIM_P2).to(tl.float32) * scale
        if WHAT == RANGE:
            top = tl.max(tl.where(have, entries, float("-inf")), axis=1)
            value = top - tl.min(tl.where(have, entries, float("inf")), axis=1)
        else:
            value = tl.sqrt(tl.sum(entries * entries, axis=1))
            if WHAT == LOG_LENGTH:
                value = tl.log(tl.maximum(value, LOG_FLOOR, propagate_nan=tl.PropagateNan.ALL))
        put(out, index, value, weight, index < resident, ADD)
