"""A linear function of each key with its rotation undone. K is read once, in chunks.

The oracle is triattn.policies.probe.
"""

from __future__ import annotations

import triton.language as tl

from triattn.ops.common import (
    EVICTED,
    KEEP,
    PREVIOUS,
    RESIDENT,
    field,
    layer_base,
    per_round,
    put,
    row_positions,
    table_of,
)
from triattn.ops.products import key_rows, load_dims
from triattn.ops.superseded import halves, probed


@per_round("table_stride", "chunks", "tiles", "raw_stride16", "channel", "fields", "tables")
def probe_kernel(
    raw,  # float32 [requests, LAYERS, HEADS, CHANNELS, raw_stride16 * 16], out: one channel of it
    probe,  # float32 [LAYERS, HEADS, HEAD_DIM]
    bases,  # int64 [GROUP_LAYERS]: addresses of K
    scales,  # float32 [LAYERS]: what a stored number is multiplied by
    layers,  # int32 [GROUP_LAYERS]
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    turns,  # float64 [BANDS]: revolutions a token
    table_stride,
    chunks,
    tiles,
    raw_stride16,
    channel,
    weight,
    position_layer_stride,
    position_head_stride,
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
    BANDS: tl.constexpr,
    BANDS_P2: tl.constexpr,
    REST_P2: tl.constexpr,
    PAIR_STEP: tl.constexpr,
    PAIR_GAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROTATED: tl.constexpr,
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
    slots = positions + layer.to(tl.int64) * position_layer_stride + head * position_head_stride
    previous, evicted = field(fields, request, PREVIOUS), field(fields, request, EVICTED)
    scale = tl.load(scales + layer)
    vector = probe + (layer * HEADS + head) * HEAD_DIM
    if REST_P2 > 0:
        dim = 2 * BANDS + tl.arange(0, REST_P2)
        beside = tl.load(vector + dim, mask=dim < HEAD_DIM, other=0.0)[None, :]
    first = chunk * tiles * TILE
    for start in range(first, tl.minimum(first + tiles * TILE, resident), TILE):
        index = start + tl.arange(0, TILE)
        valid = index < resident
        rows = key_rows(base, table, index, resident, block_stride, token_stride, BLOCK_SIZE)
        position = row_positions(slots, table, index, valid, previous, evicted, BLOCK_SIZE)
        real, imag = halves(rows, position, turns, dim_stride, PAIR_STEP, PAIR_GAP, BANDS, BANDS_P2, ROTATED)
        value = probed(real, imag, vector, PAIR_STEP, PAIR_GAP, BANDS, BANDS_P2)
        if REST_P2 > 0:
            rest = load_dims(rows, dim, dim_stride, HEAD_DIM - 2 * BANDS, REST_P2).to(tl.float32)
            value += tl.sum(rest * beside, axis=1)
        put(out, index, value * scale, weight, valid, ADD)
