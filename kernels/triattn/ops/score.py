"""Raw scores of cached keys, read once, straight from the paged cache (the trig and norm terms: arXiv 2604.04921).

One program scores a chunk of the tokens of one (request, layer, KV head), tile by tile. The oracle is
triattn.policies.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triattn.ops.common import (
    COMPUTED,
    EVICTED,
    KEEP,
    PREVIOUS,
    RESIDENT,
    evictable_span,
    field,
    layer_base,
    load_positions,
    per_round,
    table_of,
    uniform,
)
from triattn.ops.products import EPSILON, SPLITS, fold_parts, key_rows, load_dims, product


@triton.jit
def observe(values, mean, square, use, seen, STATS: tl.constexpr):
    """Welford's update of running means and squared deviations, element by element; `seen` counts `use`."""
    if STATS:
        delta = tl.where(use, values - mean, 0.0)
        mean += delta / tl.maximum(seen, 1.0)
        square += delta * tl.where(use, values - mean, 0.0)
    return mean, square


@triton.jit
def store_moments(out, mean, square, seen, mask, CHANNELS: tl.constexpr):
    """Combine the moments of all tokens of a tile (Chan's formula, no cancellation) and store one per channel."""
    total = tl.maximum(tl.sum(seen, axis=0), 1.0)
    whole = tl.sum(seen * mean, axis=0) / total
    off = mean - whole[None, :]
    tl.store(out, whole, mask=mask)
    tl.store(out + CHANNELS, tl.sum(square + seen * off * off, axis=0), mask=mask)


@per_round(
    "table_stride", "chunks", "tiles", "raw_stride16", "sinks", "window", "offset_count", "fields", "tables"
)
def score_kernel(
    raw,  # float32 [requests, LAYERS, HEADS, CHANNELS, raw_stride16 * 16], out
    partials,  # float32 [requests, LAYERS, HEADS, chunks, 2 * CHANNELS + 1], out: means, squared deviations, count
    matrices,  # [requests, LAYERS, HEADS, MATRICES, 2, BANDS_P2, SPLITS * COLUMNS]: see prepare
    spreads,  # [LAYERS, HEADS, BANDS_P2, SPLITS * COLUMNS]: coefficients of the norm term, split alike
    anchors,  # float32 [requests, LAYERS, HEADS, HEAD_DIM + 1]: sum of unit keys, its length
    bases,  # int64 [GROUP_LAYERS]: addresses of K
    scales,  # float32 [LAYERS]: what a stored key is multiplied by
    layers,  # int32 [GROUP_LAYERS]: local layers of this group
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    weights,  # float32 [8]: of each kind of term
    ids,  # int32 [LAYERS + HEADS + 2]: what the hash calls a layer and a head; the seeds' states
    given,  # float32 [requests, LAYERS, HEADS, raw_stride16 * 16]: sums of terms with kernels of their own (GIVEN)
    table_stride,
    chunks,
    tiles,
    raw_stride16,
    sinks,
    window,
    offset_count,
    position_layer_stride,
    position_head_stride,
    block_stride,
    head_stride,
    token_stride,
    dim_stride,
    DTYPE: tl.constexpr,
    ALIGN: tl.constexpr,
    KEY_PARTS: tl.constexpr,
    GROUP_LAYERS: tl.constexpr,
    LAYERS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
    MATRICES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BANDS: tl.constexpr,
    BANDS_P2: tl.constexpr,
    REST_P2: tl.constexpr,
    PAIR_STEP: tl.constexpr,
    PAIR_GAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    CHANNELS: tl.constexpr,
    TRIG: tl.constexpr,
    TRIG_MAX: tl.constexpr,
    NORM: tl.constexpr,
    KEYDIFF: tl.constexpr,
    RANDOM: tl.constexpr,
    RECENCY: tl.constexpr,
    GIVEN: tl.constexpr,
    EXTRAS: tl.constexpr,
    SEPARATE: tl.constexpr,
    STATS: tl.constexpr,
    FILL: tl.constexpr,
):
    """A chunk is `tiles` tiles of TILE entries. FILL also writes implied positions into their table.

    Channels: with SEPARATE one set for each kind of term, else one set with the weighted sum; those per query head
    have GROUP channels each and come first. Every chunk's moments are written, also those of an empty one; but for
    those of the last EXTRAS channels, which other kernels fill.
    """
    program = tl.program_id(0)
    head = program % HEADS
    chunk = (program // HEADS) % chunks
    slot = (program // (HEADS * chunks)) % GROUP_LAYERS
    request = program // (HEADS * chunks * GROUP_LAYERS)
    resident = field(fields, request, RESIDENT)
    if field(fields, request, KEEP) >= resident:
        return
    READS: tl.constexpr = KEYDIFF or TRIG or TRIG_MAX or NORM
    PER_QUERY: tl.constexpr = TRIG or TRIG_MAX or NORM
    layer = tl.load(layers + slot)
    row = (request * LAYERS + layer).to(tl.int64) * HEADS + head
    table = table_of(fields, tables, table_stride, request)
    computed = field(fields, request, COMPUTED)
    previous = field(fields, request, PREVIOUS)
    evicted = field(fields, request, EVICTED)
    free, recent = evictable_span(fields, request, sinks, window)
    head_slots = positions + layer.to(tl.int64) * position_layer_stride + head * position_head_stride
    stride = raw_stride16 * 16
    out_row = raw + row * (CHANNELS * stride)
    # Values per query head come as [TILE, COLUMNS], of which the first GROUP columns count.
    members = tl.arange(0, COLUMNS)
    member_ok = members < GROUP
    band = tl.arange(0, BANDS_P2)
    if READS:
        base = layer_base(bases, slot, DTYPE, ALIGN) + head * head_stride
        scale = tl.load(scales + layer)
        column = tl.arange(0, SPLITS * COLUMNS)
        SIZE: tl.constexpr = BANDS_P2 * SPLITS * COLUMNS
        cell = band[:, None] * (SPLITS * COLUMNS) + column[None, :]
        matrix = matrices + row * MATRICES * 2 * SIZE
        if TRIG or KEYDIFF:
            left = tl.load(matrix + cell)
            right = tl.load(matrix + SIZE + cell)
        if NORM:
            spread = tl.load(spreads + (layer * HEADS + head) * SIZE + cell)
        if KEYDIFF:
            anchor = anchors + row * (HEAD_DIM + 1)
            anchor_length = tl.load(anchor + HEAD_DIM)
            if REST_P2 > 0:
                dim = 2 * BANDS + tl.arange(0, REST_P2)
                anchor_rest = tl.load(anchor + dim, mask=dim < HEAD_DIM, other=0.0)[None, :]

    # Moments of each kind of channel; those not needed vanish in compilation.
    seen = tl.zeros([TILE, 1], tl.float32)
    # Counts of evictable tokens come in both shapes, so that neither changes its layout in the loop.
    seen_wide = tl.zeros([TILE, COLUMNS], tl.float32)
    wide = seen_wide
    mean_a, square_a, mean_b, square_b, mean_c, square_c = wide, wide, wide, wide, wide, wide
    mean_d, square_d, mean_e, square_e, mean_f, square_f = seen, seen, seen, seen, seen, seen
    first = chunk * tiles * TILE
    for start in tl.range(first, tl.minimum(first + tiles * TILE, resident), TILE, num_stages=STAGES):
        index = start + tl.arange(0, TILE)
        valid = index < resident
        out = out_row + (index[:, None] + members[None, :] * stride)
        out_ok = valid[:, None] & member_ok[None, :]
        thin = out_row + index[:, None]
        thin_ok = valid[:, None]
        if READS:
            rows = key_rows(base, table, index, resident, block_stride, token_stride, BLOCK_SIZE)
            real = load_dims(rows, band * PAIR_STEP, dim_stride, BANDS, BANDS_P2)
            imag = load_dims(rows, band * PAIR_STEP + PAIR_GAP, dim_stride, BANDS, BANDS_P2)

        position = index
        if STATS or RANDOM or RECENCY or FILL:
            block = tl.load(table + index // BLOCK_SIZE, mask=valid, other=0)
            slots = head_slots + (block * BLOCK_SIZE + index % BLOCK_SIZE)
            position = load_positions(slots, index, valid, previous, evicted)
            if FILL:
                tl.store(slots, position, mask=valid & (index >= previous))
        use = thin_ok
        if STATS:
            use = (valid & (position >= free) & (position < recent))[:, None]
            count = use.to(tl.float32)
            seen += count
            seen_wide += count

        value = tl.zeros([TILE, COLUMNS], tl.float32)
        common = tl.zeros([TILE, 1], tl.float32)
        if READS:
            total = tl.zeros([TILE, SPLITS * COLUMNS], tl.float32)
            if NORM or KEYDIFF:
                size = real.to(tl.float32) * real.to(tl.float32) + imag.to(tl.float32) * imag.to(tl.float32)
            if TRIG or KEYDIFF:
                total = product(real, left, total, KEY_PARTS)
                total = product(imag, right, total, KEY_PARTS)
            if NORM:
                if SEPARATE:
                    apart = tl.zeros([TILE, SPLITS * COLUMNS], tl.float32)
                    apart = product(tl.sqrt(size), spread, apart, 2 if KEY_PARTS > 0 else 0)
                    norm = fold_parts(apart, TILE, COLUMNS) * scale
                else:
                    total = product(tl.sqrt(size), spread, total, 2 if KEY_PARTS > 0 else 0)
            linear = fold_parts(total, TILE, COLUMNS) * scale
            if KEYDIFF:
                # The anchor is the column after the query heads'.
                dot = tl.sum(tl.where((members == GROUP)[None, :], linear, 0.0), axis=1) / scale
                length = tl.sum(size, axis=1)
                if REST_P2 > 0:
                    rest = load_dims(rows, dim, dim_stride, HEAD_DIM - 2 * BANDS, REST_P2).to(tl.float32)
                    dot += tl.sum(rest * anchor_rest, axis=1)
                    length += tl.sum(rest * rest, axis=1)
                keydiff = (-dot / (tl.maximum(tl.sqrt(length), EPSILON) * anchor_length))[:, None]
            if TRIG_MAX:
                highest = tl.full([TILE, COLUMNS], float("-inf"), tl.float32)
                ahead = matrix + (2 * SIZE if TRIG or KEYDIFF else 0)
                for o in range(0, offset_count):
                    there = tl.zeros([TILE, SPLITS * COLUMNS], tl.float32)
                    there = product(real, tl.load(ahead + o * 2 * SIZE + cell), there, KEY_PARTS)
                    there = product(imag, tl.load(ahead + (o * 2 + 1) * SIZE + cell), there, KEY_PARTS)
                    there = fold_parts(there, TILE, COLUMNS) * scale
                    highest = tl.maximum(highest, there, propagate_nan=tl.PropagateNan.ALL)
        if RANDOM:
            layer_id = tl.load(ids + layer)
            head_id = tl.load(ids + LAYERS + head)
            seed = tl.load(ids + LAYERS + HEADS)
            noise = uniform(seed, computed, layer_id, head_id, position)[:, None]
        if RECENCY:
            age = position.to(tl.float32)[:, None]

        if SEPARATE:
            if TRIG:
                tl.store(out, linear, mask=out_ok)
                mean_a, square_a = observe(linear, mean_a, square_a, use, seen_wide, STATS)
                out += GROUP * stride
                thin += GROUP * stride
            if TRIG_MAX:
                tl.store(out, highest, mask=out_ok)
                mean_b, square_b = observe(highest, mean_b, square_b, use, seen_wide, STATS)
                out += GROUP * stride
                thin += GROUP * stride
            if NORM:
                tl.store(out, norm, mask=out_ok)
                mean_c, square_c = observe(norm, mean_c, square_c, use, seen_wide, STATS)
                thin += GROUP * stride
            if KEYDIFF:
                tl.store(thin, keydiff, mask=thin_ok)
                mean_d, square_d = observe(keydiff, mean_d, square_d, use, seen, STATS)
                thin += stride
            if RANDOM:
                tl.store(thin, noise, mask=thin_ok)
                mean_e, square_e = observe(noise, mean_e, square_e, use, seen, STATS)
                thin += stride
            if RECENCY:
                tl.store(thin, age, mask=thin_ok)
                mean_f, square_f = observe(age, mean_f, square_f, use, seen, STATS)
        else:
            if KEYDIFF:
                common += keydiff * tl.load(weights + 3)
            if RANDOM:
                common += noise * tl.load(weights + 4)
            if RECENCY:
                common += age * tl.load(weights + 5)
            if GIVEN:
                common += tl.load(given + row * stride + index, mask=valid, other=0.0)[:, None]
            if PER_QUERY:
                if TRIG or NORM:
                    value += linear
                if TRIG_MAX:
                    value += highest * tl.load(weights + 1)
                value += common
                tl.store(out, value, mask=out_ok)
                mean_a, square_a = observe(value, mean_a, square_a, use, seen_wide, STATS)
            else:
                tl.store(thin, common, mask=thin_ok)
                mean_d, square_d = observe(common, mean_d, square_d, use, seen, STATS)

    if STATS:
        moments = partials + (row * chunks + chunk) * (2 * CHANNELS + 1)
        if PER_QUERY:
            total = tl.max(tl.sum(seen_wide, axis=0), axis=0)
        else:
            total = tl.max(tl.sum(seen, axis=0), axis=0)
        tl.store(moments + 2 * CHANNELS, total)
        group = moments + members
        one = tl.arange(0, 1)
        single = moments + one
        if TRIG or (PER_QUERY and not SEPARATE):
            store_moments(group, mean_a, square_a, seen_wide, member_ok, CHANNELS)
        if SEPARATE and TRIG_MAX:
            AT_MAX: tl.constexpr = GROUP if TRIG else 0
            store_moments(group + AT_MAX, mean_b, square_b, seen_wide, member_ok, CHANNELS)
        if SEPARATE and NORM:
            AT_NORM: tl.constexpr = (GROUP if TRIG else 0) + (GROUP if TRIG_MAX else 0)
            store_moments(group + AT_NORM, mean_c, square_c, seen_wide, member_ok, CHANNELS)
        # Single channels come last, in this order.
        RECENT: tl.constexpr = 1 if RECENCY else 0
        NOISE: tl.constexpr = 1 if RANDOM else 0
        last = single + (CHANNELS - EXTRAS)
        if SEPARATE and RECENCY:
            store_moments(last - 1, mean_f, square_f, seen, one < 1, CHANNELS)
        if SEPARATE and RANDOM:
            store_moments(last - 1 - RECENT, mean_e, square_e, seen, one < 1, CHANNELS)
        if SEPARATE and KEYDIFF:
            store_moments(last - 1 - RECENT - NOISE, mean_d, square_d, seen, one < 1, CHANNELS)
        if not SEPARATE and not PER_QUERY:
            store_moments(single, mean_d, square_d, seen, one < 1, CHANNELS)
