"""Leverage scores of un-rotated keys: first the Gram matrix and its inverse, one program a row, then the scores.

The oracle is triattn.policies.leverage. The matrix is at most 48 × 48 and positive definite with a bounded condition
number, so that Gauss and Jordan's elimination needs no pivots: it runs in registers, without a library's calls.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

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
from triattn.ops.products import key_rows, load_dims, product32
from triattn.ops.superseded import halves
from triattn.policies import ModelShape
from triattn.policies import leverage as oracle
from triattn.policies.leverage import Leverage, sketch

SIZE = 64
"""Columns of the sketch with zeros beside them: a power of two."""
RIDGE = tl.constexpr(oracle.RIDGE)
FLOOR = tl.constexpr(oracle.FLOOR)


def fold(term: Leverage, shape: ModelShape) -> Tensor:
    """The sketch, float32 [head_dim, SIZE]."""
    phi = sketch(term.seed, shape.head_dim)
    return torch.nn.functional.pad(phi, (0, SIZE - phi.shape[1])).contiguous()


@triton.jit
def sketched(
    phi,
    rows,
    position,
    turns,
    dim_stride,
    HEAD_DIM: tl.constexpr,
    BANDS: tl.constexpr,
    BANDS_P2: tl.constexpr,
    REST_P2: tl.constexpr,
    PAIR_STEP: tl.constexpr,
    PAIR_GAP: tl.constexpr,
    ROTATED: tl.constexpr,
    TILE: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Keys at pointers `rows` with their rotation undone, times the sketch: float32 [TILE, SIZE]."""
    column = tl.arange(0, SIZE)[None, :]
    band = tl.arange(0, BANDS_P2)[:, None]
    real, imag = halves(rows, position, turns, dim_stride, PAIR_STEP, PAIR_GAP, BANDS, BANDS_P2, ROTATED)
    at = phi + band * PAIR_STEP * SIZE + column
    total = tl.zeros([TILE, SIZE], tl.float32)
    total = product32(real, tl.load(at, mask=band < BANDS, other=0.0), total)
    total = product32(imag, tl.load(at + PAIR_GAP * SIZE, mask=band < BANDS, other=0.0), total)
    if REST_P2 > 0:
        REST_K: tl.constexpr = REST_P2 if REST_P2 > 16 else 16
        dim = 2 * BANDS + tl.arange(0, REST_K)
        rest = load_dims(rows, dim, dim_stride, HEAD_DIM - 2 * BANDS, REST_K).to(tl.float32)
        more = tl.load(phi + dim[:, None] * SIZE + column, mask=(dim < HEAD_DIM)[:, None], other=0.0)
        total = product32(rest, more, total)
    return total


@per_round("table_stride", "fields", "tables")
def inverse_kernel(
    inverses,  # float32 [requests, LAYERS, HEADS, SIZE + 1, SIZE], out: the inverse, then the mean
    phi,  # float32 [HEAD_DIM, SIZE]: the sketch
    bases,  # int64 [GROUP_LAYERS]: addresses of K
    layers,  # int32 [GROUP_LAYERS]
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    turns,  # float64 [BANDS]: revolutions a token
    table_stride,
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
    ROTATED: tl.constexpr,
    USED: tl.constexpr,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: all entries of one (request, layer, KV head), TILE at a time; the first USED columns count.

    What a key is multiplied by (its scale) has no effect: the ridge is a part of the matrix itself.
    """
    program = tl.program_id(0)
    head = program % HEADS
    slot = (program // HEADS) % GROUP_LAYERS
    request = program // (HEADS * GROUP_LAYERS)
    resident = field(fields, request, RESIDENT)
    if field(fields, request, KEEP) >= resident:
        return
    layer = tl.load(layers + slot)
    row = (request * LAYERS + layer).to(tl.int64) * HEADS + head
    table = table_of(fields, tables, table_stride, request)
    base = layer_base(bases, slot, DTYPE, ALIGN) + head * head_stride
    slots = positions + layer.to(tl.int64) * position_layer_stride + head * position_head_stride
    previous, evicted = field(fields, request, PREVIOUS), field(fields, request, EVICTED)
    column = tl.arange(0, SIZE)
    mean = tl.zeros([SIZE], tl.float32)
    gram = tl.zeros([SIZE, SIZE], tl.float32)
    seen = 0.0
    for start in range(0, resident, TILE):
        index = start + tl.arange(0, TILE)
        valid = index < resident
        rows = key_rows(base, table, index, resident, block_stride, token_stride, BLOCK_SIZE)
        position = row_positions(slots, table, index, valid, previous, evicted, BLOCK_SIZE)
        x = sketched(
            phi, rows, position, turns, dim_stride,
            HEAD_DIM, BANDS, BANDS_P2, REST_P2, PAIR_STEP, PAIR_GAP, ROTATED, TILE, SIZE,
        )  # fmt: skip
        use = (valid & (tl.sum(tl.abs(x), axis=1) < float("inf")))[:, None]
        # Moments of the tile around its own mean, then Chan's formula: no cancellation.
        count = tl.sum(tl.sum(use.to(tl.float32), axis=1), axis=0)
        here = tl.sum(tl.where(use, x, 0.0), axis=0) / tl.maximum(count, 1.0)
        x = tl.where(use, x - here[None, :], 0.0)
        gram = product32(tl.trans(x), x, gram)
        part = count / tl.maximum(seen + count, 1.0)
        off = here - mean
        gram += (seen * part) * off[:, None] * off[None, :]
        mean += part * off
        seen += count
    diagonal = column[:, None] == column[None, :]
    trace = tl.sum(tl.sum(tl.where(diagonal, gram, 0.0), axis=1), axis=0)
    gram += tl.where(diagonal, RIDGE * tl.maximum(trace / USED, FLOOR), 0.0)
    for k in range(0, USED):
        in_row, in_column = (column == k)[:, None], (column == k)[None, :]
        across = tl.sum(tl.where(in_row, gram, 0.0), axis=0)
        down = tl.sum(tl.where(in_column, gram, 0.0), axis=1)
        pivot = 1.0 / tl.sum(tl.where(column == k, across, 0.0), axis=0)
        across = tl.where(column == k, 1.0, across) * pivot
        changed = tl.where(in_column, 0.0, gram) - down[:, None] * across[None, :]
        gram = tl.where(in_row, across[None, :], changed)
    out = inverses + row * ((SIZE + 1) * SIZE)
    tl.store(out + column[:, None] * SIZE + column[None, :], gram)
    tl.store(out + SIZE * SIZE + column, mean)


@per_round("table_stride", "tiles", "raw_stride16", "channel", "fields", "tables")
def leverage_kernel(
    raw,  # float32 [requests, LAYERS, HEADS, CHANNELS, raw_stride16 * 16], out: one channel of it
    inverses,  # float32 [requests, LAYERS, HEADS, SIZE + 1, SIZE]: the inverse, then the mean
    phi,  # float32 [HEAD_DIM, SIZE]: the sketch
    bases,  # int64 [GROUP_LAYERS]: addresses of K
    layers,  # int32 [GROUP_LAYERS]
    fields,  # int32 [requests, 9]
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
    ROTATED: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    ADD: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: TILE entries of one (request, layer, KV head)."""
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
    index = tile * TILE + tl.arange(0, TILE)
    valid = index < resident
    rows = key_rows(base, table, index, resident, block_stride, token_stride, BLOCK_SIZE)
    previous, evicted = field(fields, request, PREVIOUS), field(fields, request, EVICTED)
    position = row_positions(slots, table, index, valid, previous, evicted, BLOCK_SIZE)
    x = sketched(
        phi, rows, position, turns, dim_stride,
        HEAD_DIM, BANDS, BANDS_P2, REST_P2, PAIR_STEP, PAIR_GAP, ROTATED, TILE, SIZE,
    )  # fmt: skip
    finite = tl.sum(tl.abs(x), axis=1) < float("inf")
    column = tl.arange(0, SIZE)
    source = inverses + row * ((SIZE + 1) * SIZE)
    x -= tl.load(source + SIZE * SIZE + column)[None, :]
    solved = tl.zeros([TILE, SIZE], tl.float32)
    solved = product32(x, tl.load(source + column[:, None] * SIZE + column[None, :]), solved)
    score = tl.where(finite, tl.sum(x * solved, axis=1), float("nan"))
    put(raw + (row * CHANNELS + channel) * raw_stride16 * 16, index, score, weight, valid, ADD)
