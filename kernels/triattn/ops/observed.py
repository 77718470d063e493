"""Attention of the last queries over all resident tokens, in two passes over K; then the largest nearby, or sums.

The first pass finds the denominator of each query's softmax, the second sums up probabilities: logits are computed
twice and never written, since one for each observed query would be more than the cache. The oracles are
triattn.policies.observed and accumulated.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from triattn.ops.common import (
    COMPUTED,
    EVICTED,
    KEEP,
    KNOWN,
    PREVIOUS,
    RESIDENT,
    field,
    layer_base,
    per_round,
    put,
    row_positions,
    table_of,
)
from triattn.ops.products import key_rows, load_dims, matmul, product32
from triattn.policies.accumulated import Accumulated
from triattn.policies.observed import Observed

MOST_COLUMNS = 64
"""Queries of which a program holds logits at once."""


@triton.jit
def last_queries(recent, fields, request, WINDOW: tl.constexpr, SUM: tl.constexpr):
    """A request's row of the ring, the first position that is observed, and how many are; with SUM only new ones."""
    count = tl.minimum(tl.load(recent + request * 2 + 1), WINDOW)
    if SUM:
        count = tl.minimum(count, field(fields, request, RESIDENT) - field(fields, request, KNOWN))
    return tl.load(recent + request * 2).to(tl.int64), field(fields, request, COMPUTED) - count, count


@triton.jit
def logits_of(
    keys, queries, head, first, count, scale, slot_stride, head_stride,
    RING: tl.constexpr, COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_P2: tl.constexpr,
    TILE: tl.constexpr, TOGETHER: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Largest scaled q·k of TOGETHER query heads from `head` on, float32 [TILE, COLUMNS], of the queries from position
    `first` on.

    `queries` points at a request's row of the ring; `keys` is [TILE, HEAD_DIM_P2] of the cache's dtype.
    """
    number = tl.arange(0, COLUMNS)[None, :]
    dim = tl.arange(0, HEAD_DIM_P2)[:, None]
    where = queries + ((first + number) % RING) * slot_stride + dim
    there = (number < count) & (dim < HEAD_DIM)
    best = tl.full([TILE, COLUMNS], float("-inf"), tl.float32)
    # Not unrolled: the queries of several heads at once would not fit in shared memory.
    for other in range(TOGETHER):
        query = tl.load(where + (head + other) * head_stride, mask=there, other=0.0)
        total = tl.zeros([TILE, COLUMNS], tl.float32)
        if NATIVE:
            total = matmul(keys, query, total)
        else:
            total = product32(keys.to(tl.float32), query.to(tl.float32), total)
        best = tl.maximum(best, total * scale, propagate_nan=tl.PropagateNan.ALL)
    return best


@triton.jit
def counted(logits, position, valid, first, count, COLUMNS: tl.constexpr, EARLIER: tl.constexpr):
    """Which logits are part of their query's softmax: of what it sees, or of what comes before the window."""
    number = tl.arange(0, COLUMNS)[None, :]
    sees = position[:, None] < (first if EARLIER else first + number + 1)
    return sees & valid[:, None] & (number < count) & (tl.abs(logits) < float("inf"))


@per_round("table_stride", "chunks", "tiles", "recent", "fields", "tables")
def mass_kernel(
    masses,  # float32 [requests, LAYERS, HEADS, chunks, MEMBERS, PARTS, 2, COLUMNS], out: top m, sum e^(logit − m)
    ring,  # [LAYERS, rows, RING, HEADS * MEMBERS * TOGETHER, HEAD_DIM]
    recent,  # int32 [requests, 2]: row of the ring, queries in it
    scales,  # float32 [LAYERS]: of attention
    key_scales,  # float32 [LAYERS]: what a stored key is multiplied by
    bases,  # int64 [GROUP_LAYERS]: addresses of K
    layers,  # int32 [GROUP_LAYERS]
    fields,  # int32 [requests, 8]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    ring_layer_stride,
    ring_row_stride,
    ring_slot_stride,
    ring_head_stride,
    table_stride,
    chunks,
    tiles,
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
    RING: tl.constexpr,
    WINDOW: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    MEMBERS: tl.constexpr,
    TOGETHER: tl.constexpr,
    EARLIER: tl.constexpr,
    SUM: tl.constexpr,
    NATIVE: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: a chunk (`tiles` tiles of TILE entries) of one (request, layer, KV head), and one member's part.

    A member has one softmax a query: it is a query head, or all heads of the group TOGETHER. A part is COLUMNS queries.
    """
    program = tl.program_id(0)
    head = program % HEADS
    member = (program // HEADS) % MEMBERS
    part = (program // (HEADS * MEMBERS)) % PARTS
    program = program // (HEADS * MEMBERS * PARTS)
    chunk = program % chunks
    slot = (program // chunks) % GROUP_LAYERS
    request = program // (chunks * GROUP_LAYERS)
    resident = field(fields, request, RESIDENT)
    if field(fields, request, KEEP) >= resident:
        return
    ring_row, first, count = last_queries(recent, fields, request, WINDOW, SUM)
    if part * COLUMNS >= count:
        return
    first, count = first + part * COLUMNS, count - part * COLUMNS
    layer = tl.load(layers + slot)
    row = (request * LAYERS + layer).to(tl.int64) * HEADS + head
    table = table_of(fields, tables, table_stride, request)
    base = layer_base(bases, slot, DTYPE, ALIGN) + head * head_stride
    slots = positions + layer.to(tl.int64) * position_layer_stride + head * position_head_stride
    previous, evicted = field(fields, request, PREVIOUS), field(fields, request, EVICTED)
    queries = ring + layer.to(tl.int64) * ring_layer_stride + ring_row * ring_row_stride
    scale = tl.load(scales + layer) * tl.load(key_scales + layer)
    dims = tl.arange(0, HEAD_DIM_P2)
    number = tl.arange(0, COLUMNS)

    top = tl.full([COLUMNS], float("-inf"), tl.float32)
    mass = tl.zeros([COLUMNS], tl.float32)
    begin = chunk * tiles * TILE
    for start in range(begin, tl.minimum(begin + tiles * TILE, resident), TILE):
        index = start + tl.arange(0, TILE)
        valid = index < resident
        rows = key_rows(base, table, index, resident, block_stride, token_stride, BLOCK_SIZE)
        keys = load_dims(rows, dims, dim_stride, HEAD_DIM, HEAD_DIM_P2)
        logits = logits_of(
            keys, queries, (head * MEMBERS + member) * TOGETHER, first, count, scale, ring_slot_stride,
            ring_head_stride, RING, COLUMNS, HEAD_DIM, HEAD_DIM_P2, TILE, TOGETHER, NATIVE,
        )  # fmt: skip
        position = row_positions(slots, table, index, valid, previous, evicted, BLOCK_SIZE)
        use = counted(logits, position, valid, first, count, COLUMNS, EARLIER)
        higher = tl.maximum(top, tl.max(tl.where(use, logits, float("-inf")), axis=0))
        # Where nothing counts yet, anything finite serves.
        zero = tl.where(higher == float("-inf"), 0.0, higher)
        mass *= tl.exp(top - zero)
        mass += tl.sum(tl.where(use, tl.exp(tl.where(use, logits, 0.0) - zero[None, :]), 0.0), axis=0)
        top = higher
    into = masses + (((row * chunks + chunk) * MEMBERS + member) * PARTS + part) * 2 * COLUMNS + number
    tl.store(into, top)
    tl.store(into + COLUMNS, mass)


@per_round("table_stride", "chunks", "tiles", "stride16", "recent", "fields", "tables")
def paid_kernel(
    paid,  # float32 [requests, LAYERS, HEADS, stride16 * 16], out: NaN where the key holds one
    masses,  # float32 [requests, LAYERS, HEADS, chunks, MEMBERS, PARTS, 2, COLUMNS]
    ring,  # and the rest: as for mass_kernel
    recent,
    scales,
    key_scales,
    bases,
    layers,
    fields,
    tables,
    positions,
    ring_layer_stride,
    ring_row_stride,
    ring_slot_stride,
    ring_head_stride,
    table_stride,
    chunks,
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
    RING: tl.constexpr,
    WINDOW: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    MEMBERS: tl.constexpr,
    TOGETHER: tl.constexpr,
    EARLIER: tl.constexpr,
    SUM: tl.constexpr,
    NATIVE: tl.constexpr,
    CHUNKS_P2: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: the attention that TILE entries (`tiles` a row) of one (request, layer, KV head) get, mean over
    queries or SUM."""
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
    ring_row, first, count = last_queries(recent, fields, request, WINDOW, SUM)
    queries = ring + layer.to(tl.int64) * ring_layer_stride + ring_row * ring_row_stride
    scale = tl.load(scales + layer) * tl.load(key_scales + layer)

    index = tile * TILE + tl.arange(0, TILE)
    valid = index < resident
    rows = key_rows(base, table, index, resident, block_stride, token_stride, BLOCK_SIZE)
    keys = load_dims(rows, tl.arange(0, HEAD_DIM_P2), dim_stride, HEAD_DIM, HEAD_DIM_P2)
    position = row_positions(
        slots, table, index, valid, field(fields, request, PREVIOUS), field(fields, request, EVICTED), BLOCK_SIZE
    )  # fmt: skip
    number = tl.arange(0, COLUMNS)
    chunk = tl.arange(0, CHUNKS_P2)[:, None]
    have = tl.broadcast_to(chunk < chunks, (CHUNKS_P2, COLUMNS))
    total = tl.zeros([TILE], tl.float32)
    parts = (count + COLUMNS - 1) // COLUMNS
    for step in range(MEMBERS * parts):
        member, part = step // parts, step % parts
        since, left = first + part * COLUMNS, count - part * COLUMNS
        of = (((row * chunks + chunk) * MEMBERS + member) * PARTS + part) * 2 * COLUMNS
        of = masses + of + number[None, :]
        tops = tl.load(of, mask=have, other=float("-inf"))
        top = tl.max(tops, axis=0)
        zero = tl.where(top == float("-inf"), 0.0, top)
        mass = tl.load(of + COLUMNS, mask=have, other=0.0) * tl.exp(tops - zero[None, :])
        share = 1.0 / tl.maximum(tl.sum(mass, axis=0), 1e-30)
        logits = logits_of(
            keys, queries, (head * MEMBERS + member) * TOGETHER, since, left, scale, ring_slot_stride,
            ring_head_stride, RING, COLUMNS, HEAD_DIM, HEAD_DIM_P2, TILE, TOGETHER, NATIVE,
        )  # fmt: skip
        use = counted(logits, position, valid, since, left, COLUMNS, EARLIER)
        chance = tl.exp(tl.where(use, logits, float("-inf")) - zero[None, :]) * share[None, :]
        total += tl.sum(tl.where(use, chance, 0.0), axis=1)
    if SUM:
        total = total / MEMBERS
    else:
        total = tl.where(position < first, total / (MEMBERS * count), 0.0)
    wide = keys.to(tl.float32)
    broken = tl.sum((wide != wide).to(tl.int32), axis=1) > 0  # noqa: PLR0124
    out = paid + row * stride16 * 16
    tl.store(out + index, tl.where(broken, float("nan"), total), mask=valid)


@per_round("table_stride", "tiles", "raw_stride16", "channel", "recent", "fields", "tables")
def nearby_kernel(
    raw,  # float32 [requests, LAYERS, HEADS, CHANNELS, raw_stride16 * 16], out: one channel of it
    paid,  # float32 [requests, LAYERS, HEADS, raw_stride16 * 16]
    recent,  # int32 [requests, 2]
    fields,  # int32 [requests, 8]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
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
    WINDOW: tl.constexpr,
    REACH: tl.constexpr,
    CHANNELS: tl.constexpr,
    ADD: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: of TILE entries of one (request, layer, KV head) the largest attention at most REACH positions off.

    Rows are in no order of position, so every entry is looked at.
    """
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
    previous, evicted = field(fields, request, PREVIOUS), field(fields, request, EVICTED)
    _, first, _ = last_queries(recent, fields, request, WINDOW, False)
    source = paid + row.to(tl.int64) * raw_stride16 * 16
    index = tile * TILE + tl.arange(0, TILE)
    valid = index < resident
    position = row_positions(slots, table, index, valid, previous, evicted, BLOCK_SIZE)
    own = tl.load(source + index, mask=valid, other=0.0)
    best = tl.zeros([TILE], tl.float32)
    for start in range(0, resident, TILE):
        other = start + tl.arange(0, TILE)
        there = other < resident
        when = row_positions(slots, table, other, there, previous, evicted, BLOCK_SIZE)
        value = tl.load(source + other, mask=there, other=0.0)
        near = tl.abs(when[None, :] - position[:, None]) <= REACH
        near &= (there & (value == value))[None, :]  # noqa: PLR0124
        best = tl.maximum(best, tl.max(tl.where(near, value[None, :], 0.0), axis=1))
    score = tl.where(position < first, best, 1.0)
    score = tl.where(own == own, score, float("nan"))  # noqa: PLR0124
    out = raw + (row.to(tl.int64) * CHANNELS + channel) * raw_stride16 * 16
    put(out, index, score, weight, valid, ADD)


@per_round("table_stride", "tiles", "raw_stride16", "channel", "fields", "tables")
def sum_kernel(
    raw,  # float32 [requests, LAYERS, HEADS, CHANNELS, raw_stride16 * 16], out: one channel of it
    memory,  # float32 [LAYERS, HEADS, blocks, BLOCK_SIZE], in and out: attention paid so far
    paid,  # float32 [requests, LAYERS, HEADS, raw_stride16 * 16]: of the new queries
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
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
    """One program: TILE entries of one (request, layer, KV head); what they are paid is added to what they were."""
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
    at = tl.load(table + index // BLOCK_SIZE, mask=valid, other=0) * BLOCK_SIZE + index % BLOCK_SIZE
    at += layer.to(tl.int64) * position_layer_stride + head * position_head_stride
    new = tl.load(paid + row.to(tl.int64) * raw_stride16 * 16 + index, mask=valid, other=0.0)
    whole = new == new  # noqa: PLR0124
    total = tl.load(memory + at, mask=valid & (index < field(fields, request, KNOWN)), other=0.0)
    total += tl.where(whole, new, 0.0)
    tl.store(memory + at, total, mask=valid)
    out = raw + (row.to(tl.int64) * CHANNELS + channel) * raw_stride16 * 16
    put(out, index, tl.where(whole, total, float("nan")), weight, valid, ADD)


def window_columns(window: int) -> int:
    """Queries of a window as kernels count them: whole parts."""
    if window > MOST_COLUMNS:
        return triton.cdiv(window, MOST_COLUMNS) * MOST_COLUMNS
    return max(16, triton.next_power_of_2(window))


def members_of(term: Observed | Accumulated, group: int) -> int:
    """Softmaxes of a query in a KV head of `group` query heads: one for each, or one for all together."""
    return 1 if isinstance(term, Observed) and term.group == "max" else group


def launch(
    rounds: Any,
    fields: Tensor,
    tables: Tensor,
    b: Any,
    out: Tensor,
    into: dict[str, Any],
    term: Observed | Accumulated,
    recent: Tensor,
) -> None:
    """Fill one channel of `out`, or add to it."""
    shape, t, ring, (chunks, tiles) = rounds.shape, rounds.tuning, rounds.ring, b.anchor_cut
    adds_up = isinstance(term, Accumulated)
    whole = window_columns(term.window)
    columns = min(whole, MOST_COLUMNS)
    parts = whole // columns
    members = members_of(term, shape.group)
    width = triton.next_power_of_2(shape.head_dim)
    where = rounds.positions.stride()[:2]
    for group in rounds.groups:
        of = (ring.buffer, recent, ring.scales, rounds.scales, group.key_bases, group.layers, fields, tables)
        strides = (*ring.buffer.stride()[:4], tables.stride(0))
        # Both factors as they are stored: what attention itself multiplies.
        native = group.dtype == ring.buffer.dtype and group.dtype.itemsize == 2
        # Float32 products of wide heads: only half a tile of keys fits in shared memory beside the queries.
        split = 1 if native or width <= 128 or t.anchor_tile < 32 else 2
        tile = t.anchor_tile // split
        own = triton.cdiv(b.stride, tile)
        compiled = {
            **rounds.plain_of(group),
            "HEAD_DIM_P2": width,
            "RING": ring.length,
            "WINDOW": term.window,
            "COLUMNS": columns,
            "PARTS": parts,
            "MEMBERS": members,
            "TOGETHER": shape.group // members,
            "EARLIER": not adds_up and term.group == "max",
            "SUM": adds_up,
            "NATIVE": native,
            "TILE": tile,
            "num_warps": t.observed_warps,
            "num_stages": 1,
        }
        rows = fields.shape[0] * group.size * shape.kv_heads
        mass_kernel[(rows * members * parts * chunks,)](
            b.observed,
            *of,
            rounds.positions,
            *strides,
            chunks,
            tiles * split,
            *where,
            *group.key_strides,
            **compiled,
        )
        paid_kernel[(rows * own,)](
            b.paid,
            b.observed,
            *of,
            rounds.positions,
            *strides,
            chunks,
            own,
            b.stride // 16,
            *where,
            *group.key_strides,
            CHUNKS_P2=rounds.chunks,
            **compiled,
        )
    tiles = triton.cdiv(b.stride, t.aggregate_tile)
    if adds_up:
        sum_kernel[(fields.shape[0] * rounds.rows * tiles,)](
            out,
            rounds.memory[rounds.remembered.index(term)],
            b.paid,
            fields,
            tables,
            tables.stride(0),
            tiles,
            b.stride // 16,
            into["channel"],
            into["weight"],
            *where,
            LAYERS=shape.layers,
            HEADS=shape.kv_heads,
            BLOCK_SIZE=rounds.positions.shape[3],
            CHANNELS=into["CHANNELS"],
            ADD=into["ADD"],
            TILE=t.aggregate_tile,
            num_warps=1,
        )
        return
    nearby_kernel[(fields.shape[0] * rounds.rows * tiles,)](
        out,
        b.paid,
        recent,
        fields,
        tables,
        rounds.positions,
        tables.stride(0),
        tiles,
        b.stride // 16,
        into["channel"],
        into["weight"],
        *where,
        LAYERS=shape.layers,
        HEADS=shape.kv_heads,
        BLOCK_SIZE=rounds.positions.shape[3],
        WINDOW=term.window,
        REACH=term.reach,
        CHANNELS=into["CHANNELS"],
        ADD=into["ADD"],
        TILE=t.aggregate_tile,
        num_warps=t.observed_warps,
    )
