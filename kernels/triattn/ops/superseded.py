"""The largest cosine of an entry to a later one, and the probe that looks at it: products of tiles on the tensor cores.

What an entry's largest cosine was is remembered where the entry lies, so that a round multiplies with the entries that
are new since the one before alone: K is read once, and the products are `interval` / R of all. Unit vectors are
multiplied as float16, whose 11 bits are more than the 8 that bfloat16 caches hold; with the probe's matrix keys are
multiplied in three passes of tf32, which are as good as float32. The oracles are triattn.policies.superseded and probe.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triattn import statistics
from triattn.ops.common import (
    COMPUTED,
    EVICTED,
    INTERPRETED,
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
    unturned,
)
from triattn.ops.products import EPSILON, key_rows, load_dims
from triattn.policies import probe as oracle

NEAREST = tl.constexpr(oracle.NEAREST)
BESIDE_KEYS = tl.constexpr(statistics.BESIDE_KEYS)
PRECISION = tl.constexpr("ieee" if INTERPRETED else "tf32x3")


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
        real, imag = unturned(real, imag, position, turns, band, BANDS)
    return real, imag


@triton.jit
def hidden_of(
    real, imag, probe, PAIR_STEP, PAIR_GAP, HIDDEN: tl.constexpr, BANDS: tl.constexpr, BANDS_P2: tl.constexpr
):
    """Products [TILE, HIDDEN] of keys, their bands alone, with the first rows of the matrix at `probe`."""
    band, unit = tl.arange(0, BANDS_P2), tl.arange(0, HIDDEN)
    cell = (band * PAIR_STEP)[:, None] * HIDDEN + unit[None, :]
    there = (band < BANDS)[:, None]
    total = tl.dot(real, tl.load(probe + cell, mask=there, other=0.0), input_precision=PRECISION)
    beside = tl.load(probe + PAIR_GAP * HIDDEN + cell, mask=there, other=0.0)
    return tl.dot(imag, beside, total, input_precision=PRECISION)


@triton.jit
def foreseen(hidden, probe, age, like, HEAD_DIM: tl.constexpr, HIDDEN: tl.constexpr):
    """Scores [TILE] of the network at `probe` (triattn.policies.probe) from what keys make of its HIDDEN units, ages
    and cosines [TILE]."""
    rows = probe + HEAD_DIM * HIDDEN + tl.arange(0, HIDDEN)
    longest = tl.load(probe + (HEAD_DIM + BESIDE_KEYS - 1) * HIDDEN)
    time = tl.minimum(tl.log(tl.maximum(age, 1).to(tl.float32)), longest)
    near = tl.log(tl.maximum(1.0 - like, NEAREST))
    hidden += time[:, None] * tl.load(rows)[None, :]
    hidden += like[:, None] * tl.load(rows + HIDDEN)[None, :]
    hidden += near[:, None] * tl.load(rows + 2 * HIDDEN)[None, :]
    hidden += tl.load(rows + 3 * HIDDEN)[None, :]
    active = hidden / (1.0 + tl.exp(-hidden))
    return tl.sum(active * tl.load(rows + 4 * HIDDEN)[None, :], axis=1)


@triton.jit
def unit(
    rows,
    position,
    turns,
    dim_stride,
    PAIR_STEP,
    PAIR_GAP,
    HEAD_DIM: tl.constexpr,
    BANDS: tl.constexpr,
    BANDS_P2: tl.constexpr,
    REST_P2: tl.constexpr,
    ROTATED: tl.constexpr,
    probe,
    PROBE: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    """Keys at pointers `rows` [TILE] as unit vectors, their rotation undone, in float16: real and imaginary parts
    [TILE, BANDS_P2], and what is beside the bands [TILE, REST_P2]; and in float32 the squares of their lengths [TILE]
    and, with PROBE, their products [TILE, HIDDEN] with the first rows of the matrix at `probe`."""
    real, imag = halves(rows, position, turns, dim_stride, PAIR_STEP, PAIR_GAP, BANDS, BANDS_P2, ROTATED)
    square = tl.sum(real * real + imag * imag, axis=1)
    seen = square
    if PROBE:
        seen = hidden_of(real, imag, probe, PAIR_STEP, PAIR_GAP, HIDDEN, BANDS, BANDS_P2)
    if REST_P2 > 0:
        REST_K: tl.constexpr = REST_P2 if REST_P2 > 16 else 16
        dim = 2 * BANDS + tl.arange(0, REST_K)
        rest = load_dims(rows, dim, dim_stride, HEAD_DIM - 2 * BANDS, REST_K).to(tl.float32)
        square += tl.sum(rest * rest, axis=1)
        if PROBE:
            cell = dim[:, None] * HIDDEN + tl.arange(0, HIDDEN)[None, :]
            beside = tl.load(probe + cell, mask=(dim < HEAD_DIM)[:, None], other=0.0)
            seen = tl.dot(rest, beside, seen, input_precision=PRECISION)
    else:
        rest = real
    scale = (1.0 / tl.maximum(tl.sqrt(square), EPSILON))[:, None]
    real, imag, rest = (
        (real * scale).to(tl.float16),
        (imag * scale).to(tl.float16),
        (rest * scale).to(tl.float16),
    )
    return real, imag, rest, square, seen


@triton.jit
def like(a, b, total):
    """total + a @ b transposed, of float16."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), tl.trans(b.to(tl.float32)), total, input_precision="ieee")
    else:
        return tl.dot(a, tl.trans(b), total)


@per_round("table_stride", "chunks", "tiles", "raw_stride16", "channel", "probe_channel", "fields", "tables")
def superseded_kernel(
    raw,  # float32 [requests, LAYERS, HEADS, CHANNELS, raw_stride16 * 16], out: one channel of it
    memory,  # float32 [LAYERS, HEADS, blocks, BLOCK_SIZE], in and out: the largest cosine to a later entry so far
    bases,  # int64 [GROUP_LAYERS]: addresses of K or V
    layers,  # int32 [GROUP_LAYERS]
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    turns,  # float64 [BANDS]: revolutions a token
    probe,  # float32 [LAYERS, HEADS, HEAD_DIM + 6, HIDDEN] (PROBE): see triattn.policies.probe
    scales,  # float32 [LAYERS]: what a stored number is multiplied by (PROBE)
    table_stride,
    chunks,
    tiles,
    raw_stride16,
    channel,
    weight,
    probe_channel,
    probe_weight,
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
    SCORE: tl.constexpr,
    ADD: tl.constexpr,
    PROBE: tl.constexpr,
    PROBE_ADD: tl.constexpr,
    HIDDEN: tl.constexpr,
    TILE: tl.constexpr,
    NEW: tl.constexpr,
):
    """One program: `tiles` tiles of entries of one (request, layer, KV head) against the new ones, NEW at a time.

    The new ones are outside, their vectors held while tiles pass: in service they are one time's worth. SCORE: the term
    `superseded` itself is wanted. PROBE: so is the term `probe`, which takes the cosine and reads the same keys.
    """
    program = tl.program_id(0)
    head = program % HEADS
    chunk = (program // HEADS) % chunks
    slot = (program // (HEADS * chunks)) % GROUP_LAYERS
    request = program // (HEADS * chunks * GROUP_LAYERS)
    resident = field(fields, request, RESIDENT)
    if (field(fields, request, KEEP) >= resident) | (chunk * tiles * TILE >= resident):
        return
    layer = tl.load(layers + slot)
    row = (request * LAYERS + layer).to(tl.int64) * HEADS + head
    table = table_of(fields, tables, table_stride, request)
    base = layer_base(bases, slot, DTYPE, ALIGN) + head * head_stride
    where = layer.to(tl.int64) * position_layer_stride + head * position_head_stride
    slots = positions + where
    memory += where
    previous, evicted = field(fields, request, PREVIOUS), field(fields, request, EVICTED)
    known = field(fields, request, KNOWN)
    out = raw + (row * CHANNELS + channel) * raw_stride16 * 16
    matrix = probe + (layer * HEADS + head) * (HEAD_DIM + BESIDE_KEYS) * HIDDEN
    computed = field(fields, request, COMPUTED)

    # Once at least: where nothing is new, what is remembered is the score.
    for start in range(known, tl.maximum(resident, known + 1), NEW):
        other = start + tl.arange(0, NEW)
        there = other < resident
        new_rows = key_rows(base, table, other, resident, block_stride, token_stride, BLOCK_SIZE)
        when = row_positions(slots, table, other, there, previous, evicted, BLOCK_SIZE)
        left, right, tail, _, _ = unit(
            new_rows, when, turns, dim_stride, PAIR_STEP, PAIR_GAP,
            HEAD_DIM, BANDS, BANDS_P2, REST_P2, ROTATED, matrix, False, HIDDEN,
        )  # fmt: skip
        for number in range(chunk * tiles, tl.minimum((chunk + 1) * tiles, (resident + TILE - 1) // TILE)):
            index = number * TILE + tl.arange(0, TILE)
            valid = index < resident
            rows = key_rows(base, table, index, resident, block_stride, token_stride, BLOCK_SIZE)
            position = row_positions(slots, table, index, valid, previous, evicted, BLOCK_SIZE)
            real, imag, rest, square, seen = unit(
                rows, position, turns, dim_stride, PAIR_STEP, PAIR_GAP,
                HEAD_DIM, BANDS, BANDS_P2, REST_P2, ROTATED, matrix, PROBE, HIDDEN,
            )  # fmt: skip
            cosine = tl.zeros([TILE, NEW], tl.float32)
            cosine = like(real, left, cosine)
            cosine = like(imag, right, cosine)
            if REST_P2 > 0:
                cosine = like(rest, tail, cosine)
            counts = (when[None, :] > position[:, None]) & there[None, :] & (cosine == cosine)  # noqa: PLR0124
            at = tl.load(table + index // BLOCK_SIZE, mask=valid, other=0) * BLOCK_SIZE + index % BLOCK_SIZE
            held = valid & ((index < known) | (start > known))
            best = tl.load(memory + at, mask=held, other=-1.0)
            best = tl.maximum(best, tl.max(tl.where(counts, cosine, -1.0), axis=1))
            tl.store(memory + at, best, mask=valid)
            if start + NEW >= resident:
                whole = square == square  # noqa: PLR0124
                if SCORE:
                    put(out, index, tl.where(whole, -best, float("nan")), weight, valid, ADD)
                if PROBE:
                    seen *= tl.load(scales + layer)
                    score = foreseen(seen, matrix, computed - position, best, HEAD_DIM, HIDDEN)
                    beside = raw + (row * CHANNELS + probe_channel) * raw_stride16 * 16
                    put(beside, index, tl.where(whole, score, float("nan")), probe_weight, valid, PROBE_ADD)
        # What is stored is read again, by other threads too.
        tl.debug_barrier()
