"""The matrices that a round's keys are multiplied by, one program per (request, layer, KV head).

The trigonometric term averaged over future offsets is linear in the cached key: its vector, turned to time C, is
split for the tensor cores, with KeyDiff's anchor as one more column. The maximum over offsets has a matrix for each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triattn.ops.common import COMPUTED, KEEP, RESIDENT, cos_sin, field, per_round
from triattn.ops.products import EPSILON, SPLITS, split_columns


@triton.jit
def store_split(out, left, right, part, where, SIZE: tl.constexpr, SPLIT: tl.constexpr):
    """Store both halves of a matrix, in parts if SPLIT, else as it is in the columns of part 0."""
    if SPLIT:
        tl.store(out + where, split_columns(left, part).to(tl.bfloat16))
        tl.store(out + SIZE + where, split_columns(right, part).to(tl.bfloat16))
    else:
        tl.store(out + where, tl.where(part[None, :] == 0, left, 0.0))
        tl.store(out + SIZE + where, tl.where(part[None, :] == 0, right, 0.0))


@per_round("fields", "chunks", "offset_count")
def prepare_kernel(
    matrices,  # bfloat16, or float32 unless SPLIT [requests, ROWS, MATRICES, 2, BANDS_P2, SPLITS * COLUMNS], out
    anchors,  # float32 [requests, ROWS, HEAD_DIM + 1], out: sum of unit keys; its length, but for tiny ones
    sums,  # float32 [requests, ROWS, chunks, HEAD_DIM]: partial sums of unit keys
    fields,  # int32 [requests, 9]
    query,  # float32 [4, ROWS * GROUP, BANDS]: mean-trig real, imag; max-trig real, imag
    turns,  # float64 [BANDS]: revolutions a token
    steps,  # float32 [offset_count, 2, BANDS]: e^(i o ω) of the offsets
    chunks,
    offset_count,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
    MATRICES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_P2: tl.constexpr,
    BANDS: tl.constexpr,
    BANDS_P2: tl.constexpr,
    PAIR_STEP: tl.constexpr,
    PAIR_GAP: tl.constexpr,
    CHUNKS_P2: tl.constexpr,
    SPLIT: tl.constexpr,
    TRIG: tl.constexpr,
    TRIG_MAX: tl.constexpr,
    KEYDIFF: tl.constexpr,
):
    """Matrix 0 is the linear one (with TRIG or KEYDIFF), then one for each offset (with TRIG_MAX)."""
    number = tl.program_id(0).to(tl.int64)
    request = number // ROWS
    row = number % ROWS
    resident = field(fields, request, RESIDENT)
    if field(fields, request, KEEP) >= resident:
        return
    band = tl.arange(0, BANDS_P2)
    band_mask = band < BANDS
    column = tl.arange(0, SPLITS * COLUMNS)
    part = column // COLUMNS
    member = column % COLUMNS
    SIZE: tl.constexpr = BANDS_P2 * SPLITS * COLUMNS
    where = band[:, None] * (SPLITS * COLUMNS) + column[None, :]
    out = matrices + number * MATRICES * 2 * SIZE
    if TRIG or TRIG_MAX:
        # Revolutions since position 0.
        computed = field(fields, request, COMPUTED).to(tl.float64)
        turn = computed * tl.load(turns + band, mask=band_mask, other=0.0)
        cos, sin = cos_sin(turn)
        cos, sin = cos[:, None], sin[:, None]
        PLANE: tl.constexpr = ROWS * GROUP * BANDS
        vectors = query + (row * GROUP + member)[None, :] * BANDS + band[:, None]
        mask = band_mask[:, None] & (member < GROUP)[None, :]
    if TRIG or KEYDIFF:
        left = tl.zeros([BANDS_P2, SPLITS * COLUMNS], tl.float32)
        right = tl.zeros([BANDS_P2, SPLITS * COLUMNS], tl.float32)
        if TRIG:
            real = tl.load(vectors, mask=mask, other=0.0)
            imag = tl.load(vectors + PLANE, mask=mask, other=0.0)
            left = real * cos - imag * sin
            right = real * sin + imag * cos
        if KEYDIFF:
            chunk = tl.arange(0, CHUNKS_P2)
            have = (chunk < chunks)[:, None]
            base = sums + number * chunks * HEAD_DIM
            halves = base + (chunk * HEAD_DIM)[:, None] + (band * PAIR_STEP)[None, :]
            anchor_left = tl.sum(tl.load(halves, mask=have & band_mask[None, :], other=0.0), axis=0)
            anchor_right = tl.sum(
                tl.load(halves + PAIR_GAP, mask=have & band_mask[None, :], other=0.0), axis=0
            )
            left = tl.where((member == GROUP)[None, :], anchor_left[:, None], left)
            right = tl.where((member == GROUP)[None, :], anchor_right[:, None], right)
            dim = tl.arange(0, HEAD_DIM_P2)
            whole = base + (chunk * HEAD_DIM)[:, None] + dim[None, :]
            anchor = tl.sum(tl.load(whole, mask=have & (dim < HEAD_DIM)[None, :], other=0.0), axis=0)
            # The mean of unit keys has the direction of their sum.
            length = tl.maximum(tl.sqrt(tl.sum(anchor * anchor, axis=0)) / resident, EPSILON) * resident
            anchor_out = anchors + number * (HEAD_DIM + 1)
            tl.store(anchor_out + HEAD_DIM, length)
            tl.store(anchor_out + dim, anchor, mask=dim < HEAD_DIM)
        store_split(out, left, right, part, where, SIZE, SPLIT)
        out += 2 * SIZE
    if TRIG_MAX:
        real = tl.load(vectors + 2 * PLANE, mask=mask, other=0.0)
        imag = tl.load(vectors + 3 * PLANE, mask=mask, other=0.0)
        now_left = real * cos - imag * sin
        now_right = real * sin + imag * cos
        for o in range(0, offset_count):
            step_real = tl.load(steps + o * 2 * BANDS + band, mask=band_mask, other=0.0)[:, None]
            step_imag = tl.load(steps + (o * 2 + 1) * BANDS + band, mask=band_mask, other=0.0)[:, None]
            left = now_left * step_real - now_right * step_imag
            right = now_left * step_imag + now_right * step_real
            store_split(out, left, right, part, where, SIZE, SPLIT)
            out += 2 * SIZE
