"""The largest cosine of an entry to a later one, over all resident entries: products of tiles on the tensor cores.

The oracle is triattn.policies.superseded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triattn.ops.common import (
    EVICTED,
    KEEP,
    PREVIOUS,
    RESIDENT,
    cos_sin,
    field,
    layer_base,
    per_round,
    put,
    row_positions,
    table_of,
)
from triattn.ops.products import EPSILON, key_rows, load_dims, product32


@triton.jit
def halves(
    rows,
    position,
    turns,
    dim_stride,
    PAIR_STEP,
    PAIR_GAP,
    BANDS: tl.constexpr,
    BANDS_P2: tl.constexpr,
    ROTATED: tl.constexpr,
):
    """Real and imaginary parts of keys at pointers `rows`, float32 [TILE, BANDS_P2], their rotation undone."""
    band = tl.arange(0, BANDS_P2)
    real = load_dims(rows, band * PAIR_STEP, dim_stride, BANDS, BANDS_P2).to(tl.float32)
    imag = load_dims(rows, band * PAIR_STEP + PAIR_GAP, dim_stride, BANDS, BANDS_P2).to(tl.float32)
    if ROTATED:
        turn = position.to(tl.float64)[:, None] * tl.load(turns + band, mask=band < BANDS, other=0.0)[None, :]
        cos, sin = cos_sin(turn)
        straight = real * cos + imag * sin
        imag = imag * cos - real * sin
        real = straight
    return real, imag


@per_round("table_stride", "tiles", "raw_stride16", "channel", "fields", "tables")
def superseded_kernel(
    raw,  # float32 [requests, LAYERS, HEADS, CHANNELS, raw_stride16 * 16], out: one channel of it
    bases,  # int64 [GROUP_LAYERS]: addresses of K or V
    layers,  # int32 [GROUP_LAYERS]
    fields,  # int32 [requests, 8]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    turns,  # float64 [BANDS]: revolutions a token
    table_stride,
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
    """One program: TILE entries of one (request, layer, KV head) against all of them, TILE at a time."""
    program = tl.program_id(0)
    head = program % HEADS
    tile = (program // HEADS) % tiles
    slot = (program // (HEADS * tiles)) % GROUP_LAYERS
    request = program // (HEADS * tiles * GROUP_LAYERS)
    resident = field(fields, request, RESIDENT)
    if (field(fields, request, KEEP) >= resident) | (tile * TILE >= resident):
        return
    layer = tl.load(layers + slot)
    row = (request * LAYERS + layer).to(tl.int64) * HEADS + head
    table = table_of(fields, tables, table_stride, request)
    base = layer_base(bases, slot, DTYPE, ALIGN) + head * head_stride
    slots = positions + layer.to(tl.int64) * position_layer_stride + head * position_head_stride
    previous, evicted = field(fields, request, PREVIOUS), field(fields, request, EVICTED)
    if REST_P2 > 0:
        dim = 2 * BANDS + tl.arange(0, REST_P2)

    index = tile * TILE + tl.arange(0, TILE)
    valid = index < resident
    rows = key_rows(base, table, index, resident, block_stride, token_stride, BLOCK_SIZE)
    position = row_positions(slots, table, index, valid, previous, evicted, BLOCK_SIZE)
    real, imag = halves(rows, position, turns, dim_stride, PAIR_STEP, PAIR_GAP, BANDS, BANDS_P2, ROTATED)
    length = tl.sum(real * real + imag * imag, axis=1)
    if REST_P2 > 0:
        rest = load_dims(rows, dim, dim_stride, HEAD_DIM - 2 * BANDS, REST_P2).to(tl.float32)
        length += tl.sum(rest * rest, axis=1)
    shrink = 1.0 / tl.maximum(tl.sqrt(length), EPSILON)
    real *= shrink[:, None]
    imag *= shrink[:, None]
    if REST_P2 > 0:
        rest *= shrink[:, None]

    best = tl.full([TILE], -1.0, tl.float32)
    for start in range(0, resident, TILE):
        other = start + tl.arange(0, TILE)
        there = other < resident
        other_rows = key_rows(base, table, other, resident, block_stride, token_stride, BLOCK_SIZE)
        when = row_positions(slots, table, other, there, previous, evicted, BLOCK_SIZE)
        left, right = halves(
            other_rows, when, turns, dim_stride, PAIR_STEP, PAIR_GAP, BANDS, BANDS_P2, ROTATED
        )
        size = tl.sum(left * left + right * right, axis=1)
        if REST_P2 > 0:
            tail = load_dims(other_rows, dim, dim_stride, HEAD_DIM - 2 * BANDS, REST_P2).to(tl.float32)
            size += tl.sum(tail * tail, axis=1)
        shrink = (1.0 / tl.maximum(tl.sqrt(size), EPSILON))[:, None]
        like = tl.zeros([TILE, TILE], tl.float32)
        like = product32(real, tl.trans(left * shrink), like)
        like = product32(imag, tl.trans(right * shrink), like)
        if REST_P2 > 0:
            like = product32(rest, tl.trans(tail * shrink), like)
        counts = (when[None, :] > position[:, None]) & there[None, :] & (like == like)  # noqa: PLR0124
        best = tl.maximum(best, tl.max(tl.where(counts, like, -1.0), axis=1))
    score = tl.where(length == length, -best, float("nan"))  # noqa: PLR0124
    put(raw + (row * CHANNELS + channel) * raw_stride16 * 16, index, score, weight, valid, ADD)
