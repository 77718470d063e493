"""Which entries of a row stay: the highest `keep`, exactly; among equals the lower index. No sort.

A float32 maps to a uint32 of the same order; the threshold is found bit by bit. Kept entries at or beyond
`keep` are then paired, in order, with the holes below it. The oracles are triattn.policies.select and
triattn.ops.torch_rounds.moves.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triattn.ops.common import KEEP, RESIDENT, field, lowest_if_nan, per_round


@triton.jit
def sort_key(score, valid):
    """uint32 in the order of float32 scores; NaN as -inf, both zeros alike, 0 where not valid."""
    score = lowest_if_nan(score)
    score = tl.where(score == 0.0, 0.0, score)
    bits = score.to(tl.uint32, bitcast=True)
    key = tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return tl.where(valid, key, 0)


@triton.jit
def select_row(key, valid, keep):
    """Kept entries of a row whose keys fit in registers, bool like `key`."""
    threshold = tl.full([], 0, tl.uint32)
    bit = tl.full([], 0x80000000, tl.uint32)
    for _ in range(32):
        candidate = threshold | bit
        enough = tl.sum((key >= candidate).to(tl.int32), axis=0) >= keep
        threshold = tl.where(enough, candidate, threshold)
        bit = bit >> 1
    above = key > threshold
    equal = (key == threshold) & valid
    room = keep - tl.sum(above.to(tl.int32), axis=0)
    return above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room))


@triton.jit
def pair_moves(kept, valid, index, keep):
    """Where each entry stands in the list of sources or of holes: (is source, is hole, rank among its kind)."""
    source = kept & (index >= keep)
    hole = (kept == 0) & valid & (index < keep)
    # One scan for both: a row that fits in registers has fewer than 2**16 of either.
    ranks = tl.cumsum(source.to(tl.int32) + (hole.to(tl.int32) << 16), axis=0)
    return source, hole, tl.where(source, ranks & 0xFFFF, ranks >> 16) - 1


@per_round("final_stride16", "move_stride", "fields")
def select_kernel(
    moves,  # int32 [requests, CHOICES, 2, move_stride], out: sources, then destinations
    counts,  # int32 [requests, CHOICES], out: moves
    final,  # float32 [requests, CHOICES, final_stride16 * 16]
    fields,  # int32 [requests, 9]
    final_stride16,
    move_stride,
    CHOICES: tl.constexpr,
    BLOCK: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Rows of any length, one program each, BLOCK entries at a time; four bits of the threshold a pass.

    COUNT entries at a time are compared with the 15 candidates of a pass.
    """
    number = tl.program_id(0).to(tl.int64)
    resident = field(fields, number // CHOICES, RESIDENT)
    keep = field(fields, number // CHOICES, KEEP)
    if keep >= resident:
        return
    scores = final + number * final_stride16 * 16
    digit = tl.arange(0, 16)
    threshold = tl.full([], 0, tl.uint32)
    shift = tl.full([], 28, tl.uint32)
    for _ in range(8):
        candidates = threshold | (digit.to(tl.uint32) << shift)
        count = tl.zeros([16], tl.int32)
        for start in range(0, resident, COUNT):
            index = start + tl.arange(0, COUNT)
            key = sort_key(tl.load(scores + index, mask=index < resident, other=0.0), index < resident)
            count += tl.sum((key[:, None] >= candidates[None, :]).to(tl.int32), axis=0)
        # Counts fall as candidates rise: the number of those above digit 0 that suffice is the digit.
        best = tl.sum(((count >= keep) & (digit > 0)).to(tl.int32), axis=0)
        threshold = threshold | (best.to(tl.uint32) << shift)
        shift = shift - 4
    above = 0
    for start in range(0, resident, BLOCK):
        index = start + tl.arange(0, BLOCK)
        key = sort_key(tl.load(scores + index, mask=index < resident, other=0.0), index < resident)
        above += tl.sum((key > threshold).to(tl.int32), axis=0)
    room = keep - above
    out = moves + number * 2 * move_stride
    equals = 0
    sources = 0
    holes = 0
    for start in range(0, resident, BLOCK):
        index = start + tl.arange(0, BLOCK)
        valid = index < resident
        key = sort_key(tl.load(scores + index, mask=valid, other=0.0), valid)
        equal = ((key == threshold) & valid).to(tl.int32)
        kept = (key > threshold) | ((equal != 0) & (equals + tl.cumsum(equal, axis=0) <= room))
        source = (kept & (index >= keep)).to(tl.int32)
        hole = ((kept == 0) & valid & (index < keep)).to(tl.int32)
        tl.store(out + sources + tl.cumsum(source, axis=0) - 1, index, mask=source != 0)
        tl.store(out + move_stride + holes + tl.cumsum(hole, axis=0) - 1, index, mask=hole != 0)
        equals += tl.sum(equal, axis=0)
        sources += tl.sum(source, axis=0)
        holes += tl.sum(hole, axis=0)
    tl.store(counts + number, holes)
