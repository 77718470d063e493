"""Mean cosine of each key to all others, the latest of what repeats spared; then its softmax over the row.

The oracle is triattn.policies.redundancy.
"""

from __future__ import annotations

from typing import Any

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
from triattn.ops.products import EPSILON, key_rows, load_dims, product32
from triattn.policies import redundancy as oracle

ALIKE = tl.constexpr(oracle.ALIKE)


@triton.jit
def unit_keys(rows, dim_stride, HEAD_DIM: tl.constexpr, HEAD_DIM_P2: tl.constexpr):
    """Keys at pointers `rows`, float32 [TILE, HEAD_DIM_P2] of length 1, 0 where not finite, and where they are."""
    keys = load_dims(rows, tl.arange(0, HEAD_DIM_P2), dim_stride, HEAD_DIM, HEAD_DIM_P2).to(tl.float32)
    finite = tl.sum((tl.abs(keys) < float("inf")).to(tl.int32), axis=1) == HEAD_DIM_P2
    keys = tl.where(finite[:, None], keys, 0.0)
    length = tl.sqrt(tl.sum(keys * keys, axis=1))
    return keys / tl.maximum(length, EPSILON)[:, None], finite


@per_round("table_stride", "tiles", "stride16", "fields", "tables")
def similar_kernel(
    sums,  # float32 [requests, LAYERS, HEADS, stride16 * 16], out: of cosines to all others; -inf: key not finite
    cosines,  # the same, out: that to the latest entry alike
    latest,  # int32, the same, out: its position, -1: none
    bases,  # int64 [GROUP_LAYERS]: addresses of K
    layers,  # int32 [GROUP_LAYERS]
    fields,  # int32 [requests, 8]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    table_stride,
    tiles,
    stride16,
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
    HEAD_DIM_P2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
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

    index = tile * TILE + tl.arange(0, TILE)
    rows = key_rows(base, table, index, resident, block_stride, token_stride, BLOCK_SIZE)
    keys, finite = unit_keys(rows, dim_stride, HEAD_DIM, HEAD_DIM_P2)
    total = tl.zeros([TILE], tl.float32)
    cosine = tl.zeros([TILE], tl.float32)
    last = tl.full([TILE], -1, tl.int32)
    for start in range(0, resident, TILE):
        other = start + tl.arange(0, TILE)
        there = other < resident
        other_rows = key_rows(base, table, other, resident, block_stride, token_stride, BLOCK_SIZE)
        others, _ = unit_keys(other_rows, dim_stride, HEAD_DIM, HEAD_DIM_P2)
        when = row_positions(slots, table, other, there, previous, evicted, BLOCK_SIZE)
        like = product32(keys, tl.trans(others), tl.zeros([TILE, TILE], tl.float32))
        like = tl.where(there[None, :] & (index[:, None] != other[None, :]), like, 0.0)
        total += tl.sum(like, axis=1)
        alike = tl.where(like > ALIKE, when[None, :], -1)
        newest = tl.max(alike, axis=1)
        newer = newest > last
        here = tl.sum(tl.where(newer[:, None] & (alike == newest[:, None]), like, 0.0), axis=1)
        cosine = tl.where(newer, here, cosine)
        last = tl.maximum(last, newest)
    out = row * stride16 * 16 + index
    mask = index < resident
    tl.store(sums + out, tl.where(finite, total, float("-inf")), mask=mask)
    tl.store(cosines + out, cosine, mask=mask)
    tl.store(latest + out, last, mask=mask)


@per_round("table_stride", "tiles", "stride16", "fields", "tables")
def spared_kernel(
    means,  # float32 [requests, LAYERS, HEADS, stride16 * 16], out
    sums,  # as similar_kernel left them
    cosines,
    latest,
    fields,  # int32 [requests, 8]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    table_stride,
    tiles,
    stride16,
    position_layer_stride,
    position_head_stride,
    LAYERS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: mean cosines of TILE entries, without those of entries of which they are the latest alike."""
    program = tl.program_id(0)
    tile = program % tiles
    row = program // tiles
    head = row % HEADS
    layer = (row // HEADS) % LAYERS
    request = row // (HEADS * LAYERS)
    resident = field(fields, request, RESIDENT)
    if (field(fields, request, KEEP) >= resident) | (tile * TILE >= resident):
        return
    table = table_of(fields, tables, table_stride, request)
    slots = positions + layer.to(tl.int64) * position_layer_stride + head * position_head_stride
    of = row.to(tl.int64) * stride16 * 16
    index = tile * TILE + tl.arange(0, TILE)
    valid = index < resident
    position = row_positions(
        slots, table, index, valid, field(fields, request, PREVIOUS), field(fields, request, EVICTED), BLOCK_SIZE
    )  # fmt: skip
    spared = tl.zeros([TILE], tl.float32)
    for start in range(0, resident, TILE):
        other = start + tl.arange(0, TILE)
        there = other < resident
        whose = tl.load(latest + of + other, mask=there, other=-1)
        cosine = tl.load(cosines + of + other, mask=there, other=0.0)
        spared += tl.sum(tl.where(whose[None, :] == position[:, None], cosine[None, :], 0.0), axis=1)
    total = tl.load(sums + of + index, mask=valid, other=0.0)
    tl.store(means + of + index, (total - spared) / resident, mask=valid)


@per_round("tiles", "raw_stride16", "channel", "fields")
def redundancy_kernel(
    raw,  # float32 [requests, LAYERS, HEADS, CHANNELS, raw_stride16 * 16], out: one channel of it
    means,  # float32 [requests, LAYERS, HEADS, raw_stride16 * 16]
    fields,  # int32 [requests, 8]
    tiles,
    raw_stride16,
    channel,
    weight,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ADD: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: the negative softmax of TILE entries of one (request, layer, KV head)."""
    program = tl.program_id(0)
    tile = program % tiles
    row = (program // tiles).to(tl.int64)
    request = program // (tiles * ROWS)
    resident = field(fields, request, RESIDENT)
    if (field(fields, request, KEEP) >= resident) | (tile * TILE >= resident):
        return
    source = means + row * raw_stride16 * 16
    # Means of cosines: no exponential of them needs a shift.
    mass = tl.zeros([TILE], tl.float32)
    for start in range(0, resident, TILE):
        other = start + tl.arange(0, TILE)
        mass += tl.exp(tl.load(source + other, mask=other < resident, other=float("-inf")))
    index = tile * TILE + tl.arange(0, TILE)
    valid = index < resident
    mean = tl.load(source + index, mask=valid, other=0.0)
    score = tl.where(mean == float("-inf"), float("nan"), -tl.exp(mean) / tl.sum(mass, axis=0))
    put(raw + (row * CHANNELS + channel) * raw_stride16 * 16, index, score, weight, valid, ADD)


def launch(rounds: Any, fields: Tensor, tables: Tensor, b: Any, out: Tensor, into: dict[str, Any]) -> None:
    shape, t, where = rounds.shape, rounds.tuning, rounds.positions.stride()[:2]
    sums, cosines, means = b.alike.view(3, -1)
    width = triton.next_power_of_2(shape.head_dim)
    # Two tiles of float32 keys in three parts each must fit in shared memory.
    tile = t.redundancy_tile if width <= 128 else t.redundancy_tile // 2
    tiles = b.stride // tile
    for group in rounds.groups:
        similar_kernel[(fields.shape[0] * group.size * shape.kv_heads * tiles,)](
            sums,
            cosines,
            b.latest,
            group.key_bases,
            group.layers,
            fields,
            tables,
            rounds.positions,
            tables.stride(0),
            tiles,
            b.stride // 16,
            *where,
            *group.key_strides,
            **rounds.plain_of(group),
            HEAD_DIM_P2=width,
            TILE=tile,
            num_warps=t.redundancy_warps,
        )
    tiles = triton.cdiv(b.stride, t.aggregate_tile)
    grid = (fields.shape[0] * rounds.rows * tiles,)
    spared_kernel[grid](
        means,
        sums,
        cosines,
        b.latest,
        fields,
        tables,
        rounds.positions,
        tables.stride(0),
        tiles,
        b.stride // 16,
        *where,
        LAYERS=shape.layers,
        HEADS=shape.kv_heads,
        BLOCK_SIZE=rounds.positions.shape[3],
        TILE=t.aggregate_tile,
        num_warps=t.aggregate_warps,
    )
    redundancy_kernel[grid](
        out,
        means,
        fields,
        tiles,
        b.stride // 16,
        into["channel"],
        into["weight"],
        ROWS=rounds.rows,
        CHANNELS=into["CHANNELS"],
        ADD=into["ADD"],
        TILE=t.aggregate_tile,
        num_warps=t.aggregate_warps,
    )
