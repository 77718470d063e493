"""From raw scores per query head to one score per choice: z-scores, the GQA group, layers, pins.

The oracle is triattn.policies.policy. A score that is not a number counts as the lowest, a pinned one as +inf.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triattn.ops.common import (
    EVICTED,
    KEEP,
    PREVIOUS,
    RESIDENT,
    evictable_span,
    field,
    load_positions,
    lowest_if_nan,
    per_round,
    table_of,
)

STD_FLOOR = tl.constexpr(1e-6)


@triton.jit
def moments_of(partials, c, chunks, ok, CHANNELS: tl.constexpr, CHUNKS_P2: tl.constexpr):
    """Mean and standard deviation of channel c over a row's chunks (Chan's formula).

    `partials` points at the first chunk of one row, or of several rows, [rows, 1]; `ok`, of the same shape, says
    which rows there are. The results have that shape too.
    """
    chunk = tl.arange(0, CHUNKS_P2)
    axis: tl.constexpr = len(partials.shape) - 1 if len(partials.shape) > 0 else 0
    if axis > 0:
        chunk = chunk[None, :]
    mask = ok & (chunk < chunks)
    where = partials + chunk * (2 * CHANNELS + 1)
    count = tl.load(where + 2 * CHANNELS, mask=mask, other=0.0)
    mean = tl.load(where + c, mask=mask, other=0.0)
    square = tl.load(where + CHANNELS + c, mask=mask, other=0.0)
    total = tl.maximum(tl.sum(count, axis=axis), 1.0)
    whole = tl.sum(count * mean, axis=axis) / total
    off = mean - (whole[:, None] if axis > 0 else whole)
    variance = tl.sum(square + count * off * off, axis=axis) / total
    # A deviation that is not a number must stay so.
    deviation = tl.maximum(tl.sqrt(variance), STD_FLOOR, propagate_nan=tl.PropagateNan.ALL)
    if axis > 0:
        return whole[:, None], deviation[:, None]
    else:
        return whole, deviation


@triton.jit
def channel_score(
    raw,
    stride,
    partials,
    chunks,
    mask,
    ok,
    c,
    CHANNELS: tl.constexpr,
    STATS: tl.constexpr,
    CHUNKS_P2: tl.constexpr,
):
    """One channel of entries [N] or [rows, N], as a z-score if STATS."""
    x = tl.load(raw + c * stride, mask=mask, other=0.0)
    if STATS:
        mean, deviation = moments_of(partials, c, chunks, ok, CHANNELS, CHUNKS_P2)
        x = (x - mean) / deviation
    return x


@triton.jit
def group_score(
    raw,
    stride,
    partials,
    chunks,
    mask,
    ok,
    weights,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERY_SETS: tl.constexpr,
    KV_SETS: tl.constexpr,
    STATS: tl.constexpr,
    GROUP_MEAN: tl.constexpr,
    CHUNKS_P2: tl.constexpr,
):
    """Scores per KV head of entries, [N] or [rows, N], whose first raw channel `raw` points at; -inf for NaN.

    `partials` and `ok` as in moments_of; `weights` points at those of each row, of the shape of `partials`.
    """
    score = 0.0
    for k in tl.static_range(KV_SETS):
        c = QUERY_SETS * GROUP + k
        part = channel_score(raw, stride, partials, chunks, mask, ok, c, CHANNELS, STATS, CHUNKS_P2)
        score += part * tl.load(weights + QUERY_SETS + k)
    if QUERY_SETS > 0:
        for g in tl.static_range(GROUP):
            for q in tl.static_range(QUERY_SETS):
                c = q * GROUP + g
                part = channel_score(raw, stride, partials, chunks, mask, ok, c, CHANNELS, STATS, CHUNKS_P2)
                part = part * tl.load(weights + q)
                if q == 0:
                    one = part
                else:
                    one += part
            if g == 0:
                group = one
            elif GROUP_MEAN:
                group += one
            else:
                group = tl.maximum(group, one, propagate_nan=tl.PropagateNan.ALL)
        score += group / GROUP if GROUP_MEAN else group
    return lowest_if_nan(score)


@per_round("table_stride", "tiles", "chunks", "raw_stride16", "sinks", "window", "fields", "tables")
def aggregate_kernel(
    final,  # float32 [requests, CHOICES, raw_stride16 * 16], out
    raw,  # float32 [requests, LAYERS, HEADS, CHANNELS, raw_stride16 * 16]
    partials,  # float32 [requests, LAYERS, HEADS, chunks, 2 * CHANNELS + 1]: see score
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    weights,  # float32 [LAYERS * HEADS, sets]
    table_stride,
    tiles,
    chunks,
    raw_stride16,
    sinks,
    window,
    position_layer_stride,
    position_head_stride,
    LAYERS: tl.constexpr,
    HEADS: tl.constexpr,
    CHOICES: tl.constexpr,
    SHARED: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,
    QUERY_SETS: tl.constexpr,
    KV_SETS: tl.constexpr,
    STATS: tl.constexpr,
    GROUP_MEAN: tl.constexpr,
    CHUNKS_P2: tl.constexpr,
    LAYER_MEAN: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    LOAD: tl.constexpr,
):
    """One program: one tile of one choice, over the SHARED (layer, head) rows that it is made for.

    CHOICES * SHARED = LAYERS * HEADS: one choice for all rows (union), for a head's (per_head) or for each.
    LOAD rows are read at a time.
    """
    program = tl.program_id(0)
    tile = program % tiles
    choice = (program // tiles) % CHOICES
    request = program // (tiles * CHOICES)
    resident = field(fields, request, RESIDENT)
    if (field(fields, request, KEEP) >= resident) | (tile * TILE >= resident):
        return
    index = tile * TILE + tl.arange(0, TILE)
    valid = index < resident
    table = table_of(fields, tables, table_stride, request)
    block = tl.load(table + index // BLOCK_SIZE, mask=valid, other=0).to(tl.int64)
    slot = block * BLOCK_SIZE + index % BLOCK_SIZE
    stride = raw_stride16.to(tl.int64) * 16
    previous = field(fields, request, PREVIOUS)
    evicted = field(fields, request, EVICTED)
    free, recent = evictable_span(fields, request, sinks, window)
    out = final + (request.to(tl.int64) * CHOICES + choice) * stride + index
    if SHARED == 1:
        # One row in two dimensions would be every warp's whole work.
        row = request.to(tl.int64) * CHOICES + choice
        score = group_score(
            raw + row * CHANNELS * stride + index,
            stride,
            partials + row * chunks * (2 * CHANNELS + 1),
            chunks,
            valid,
            chunks > 0,
            weights + choice * (QUERY_SETS + KV_SETS),
            CHANNELS,
            GROUP,
            QUERY_SETS,
            KV_SETS,
            STATS,
            GROUP_MEAN,
            CHUNKS_P2,
        )
        slots = (
            positions
            + (choice // HEADS).to(tl.int64) * position_layer_stride
            + (choice % HEADS) * position_head_stride
        )
        position = load_positions(slots + slot, index, valid, previous, evicted)
        score = tl.where((position < free) | (position >= recent), float("inf"), score)
        tl.store(out, score, mask=valid)
    else:
        best = tl.full([TILE], float("-inf"), tl.float32)
        total = tl.zeros([TILE], tl.float64)
        pinned = tl.zeros([TILE], tl.int32)
        for start in range(0, SHARED, LOAD):
            which = start + tl.arange(0, LOAD)
            have = (which < SHARED)[:, None]
            # Row numbers in LAYERS * HEADS: of a shared head, one a layer.
            number = choice + which * CHOICES
            layer = number // HEADS
            head = number % HEADS
            row = (request.to(tl.int64) * (LAYERS * HEADS) + number)[:, None]
            mask = have & valid[None, :]
            score = group_score(
                raw + row * CHANNELS * stride + index[None, :],
                stride,
                partials + row * chunks * (2 * CHANNELS + 1),
                chunks,
                mask,
                have,
                weights + (tl.where(which < SHARED, number, 0) * (QUERY_SETS + KV_SETS))[:, None],
                CHANNELS,
                GROUP,
                QUERY_SETS,
                KV_SETS,
                STATS,
                GROUP_MEAN,
                CHUNKS_P2,
            )
            slots = (
                positions
                + (layer.to(tl.int64) * position_layer_stride + head * position_head_stride)[:, None]
            )
            position = load_positions(slots + slot[None, :], index[None, :], mask, previous, evicted)
            pins = (position < free) | (position >= recent)
            pinned += tl.sum((pins & mask).to(tl.int32), axis=0)
            if LAYER_MEAN:
                total += tl.sum(tl.where(mask, score, 0.0).to(tl.float64), axis=0)
            else:
                best = tl.maximum(best, tl.max(tl.where(mask, score, float("-inf")), axis=0))
        if LAYER_MEAN:
            best = lowest_if_nan((total / SHARED).to(tl.float32))
        best = tl.where(pinned > 0, float("inf"), best)
        tl.store(out, best, mask=valid)
