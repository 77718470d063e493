"""Sums of unit keys over the resident entries: KeyDiff's anchor (arXiv 2504.15364), in chunks.

One program adds the tiles of one chunk of one (request, layer, KV head). The oracle is triattn.policies.keydiff.
"""

from __future__ import annotations

import triton.language as tl

from triattn.ops.common import KEEP, RESIDENT, field, layer_base, per_round, table_of
from triattn.ops.products import EPSILON, key_rows, load_dims


@per_round("table_stride", "chunks", "tiles", "fields", "tables")
def anchor_kernel(
    anchors,  # float32 [requests, LAYERS, HEADS, chunks, HEAD_DIM], out
    bases,  # int64 [GROUP_LAYERS]: addresses of K
    layers,  # int32 [GROUP_LAYERS]
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
    table_stride,
    chunks,
    tiles,
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
    TILE: tl.constexpr,
):
    """Chunk c covers `tiles` tiles of TILE entries; every chunk is written, empty ones with zeros."""
    program = tl.program_id(0)
    head = program % HEADS
    chunk = (program // HEADS) % chunks
    slot = (program // (HEADS * chunks)) % GROUP_LAYERS
    request = program // (HEADS * chunks * GROUP_LAYERS)
    resident = field(fields, request, RESIDENT)
    if field(fields, request, KEEP) >= resident:
        return
    table = table_of(fields, tables, table_stride, request)
    base = layer_base(bases, slot, DTYPE, ALIGN) + head * head_stride
    band = tl.arange(0, BANDS_P2)
    band_mask = band < BANDS
    left = tl.zeros([BANDS_P2], tl.float32)
    right = tl.zeros([BANDS_P2], tl.float32)
    if REST_P2 > 0:
        dim = 2 * BANDS + tl.arange(0, REST_P2)
        other = tl.zeros([REST_P2], tl.float32)
    first = chunk * tiles * TILE
    for start in range(first, tl.minimum(first + tiles * TILE, resident), TILE):
        index = start + tl.arange(0, TILE)
        rows = key_rows(base, table, index, resident, block_stride, token_stride, BLOCK_SIZE)
        real = load_dims(rows, band * PAIR_STEP, dim_stride, BANDS, BANDS_P2).to(tl.float32)
        imag = load_dims(rows, band * PAIR_STEP + PAIR_GAP, dim_stride, BANDS, BANDS_P2).to(tl.float32)
        square = tl.sum(real * real + imag * imag, axis=1)
        if REST_P2 > 0:
            rest = load_dims(rows, dim, dim_stride, HEAD_DIM - 2 * BANDS, REST_P2).to(tl.float32)
            square += tl.sum(rest * rest, axis=1)
        shrink = tl.where(index < resident, 1.0 / tl.maximum(tl.sqrt(square), EPSILON), 0.0)[:, None]
        left += tl.sum(real * shrink, axis=0)
        right += tl.sum(imag * shrink, axis=0)
        if REST_P2 > 0:
            other += tl.sum(rest * shrink, axis=0)
    layer = tl.load(layers + slot)
    out = anchors + (((request * LAYERS + layer).to(tl.int64) * HEADS + head) * chunks + chunk) * HEAD_DIM
    tl.store(out + band * PAIR_STEP, left, mask=band_mask)
    tl.store(out + band * PAIR_STEP + PAIR_GAP, right, mask=band_mask)
    if REST_P2 > 0:
        tl.store(out + dim, other, mask=dim < HEAD_DIM)
