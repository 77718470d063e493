"""Expected attention of cached keys, read once, in chunks; then its softmax, averaged over the query heads of a group.

The oracle is triattn.policies.expected.
"""

from __future__ import annotations

import math

import torch
import triton.language as tl
from torch import Tensor

from triattn.ops.common import (
    COMPUTED,
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
from triattn.ops.products import key_rows, load_dims, product32
from triattn.policies import ModelShape, QueryStatistics
from triattn.policies import expected as oracle
from triattn.policies.expected import Expected, mean_turn

SINKS = tl.constexpr(oracle.SINKS)


def fold(term: Expected, shape: ModelShape, statistics: QueryStatistics) -> Tensor:
    """Constants of the term, float32 [5, layers, query heads, F].

    The mean query at C = 0, real and imaginary, over √d; then, over 4d, its E|z|² and its E z², real and imaginary,
    z the deviation from the mean: what the band's |k|², Re k² and Im k² are multiplied by.
    """
    turn = mean_turn(shape.inv_freq, term.horizon) * shape.attention_scaling
    centre = (
        torch.complex(statistics.q_mean_real.double().cpu(), statistics.q_mean_imag.double().cpu()) * turn
    )
    real, imag, both = statistics.q_covariance.double().cpu()  # type: ignore[attr-defined]
    size = (real + imag) * turn.abs().square()
    ellipse = torch.complex(real - imag, 2 * both) * turn.square()
    linear, square = 1 / math.sqrt(shape.head_dim), 1 / (4 * shape.head_dim)
    parts = (centre.real * linear, centre.imag * linear, size * square)
    return torch.stack([*parts, ellipse.real * square, ellipse.imag * square]).float().contiguous()


@per_round("table_stride", "chunks", "tiles", "raw_stride16", "fields", "tables")
def expected_kernel(
    logits,  # float32 [requests, LAYERS, HEADS, GROUP, raw_stride16 * 16], out
    masses,  # float32 [requests, LAYERS, HEADS, chunks, 2, GROUP], out: largest logit m, sum of e^(logit − m)
    queries,  # float32 [5, LAYERS, HEADS, GROUP, BANDS]: see fold
    turns,  # float64 [BANDS]: revolutions a token
    bases,  # int64 [GROUP_LAYERS]: addresses of K
    scales,  # float32 [LAYERS]: what a stored key is multiplied by
    layers,  # int32 [GROUP_LAYERS]
    fields,  # int32 [requests, 9]
    tables,  # int32 [rows, table_stride]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    table_stride,
    chunks,
    tiles,
    raw_stride16,
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
    BANDS: tl.constexpr,
    BANDS_P2: tl.constexpr,
    PAIR_STEP: tl.constexpr,
    PAIR_GAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    """A chunk is `tiles` tiles of TILE entries of one (request, layer, KV head); the masses of empty ones are 0."""
    program = tl.program_id(0)
    head = program % HEADS
    chunk = (program // HEADS) % chunks
    slot = (program // (HEADS * chunks)) % GROUP_LAYERS
    request = program // (HEADS * chunks * GROUP_LAYERS)
    resident = field(fields, request, RESIDENT)
    if field(fields, request, KEEP) >= resident:
        return
    layer = tl.load(layers + slot)
    row = (request * LAYERS + layer).to(tl.int64) * HEADS + head
    stride = raw_stride16 * 16
    table = table_of(fields, tables, table_stride, request)
    base = layer_base(bases, slot, DTYPE, ALIGN) + head * head_stride
    slots = positions + layer.to(tl.int64) * position_layer_stride + head * position_head_stride
    previous, evicted = field(fields, request, PREVIOUS), field(fields, request, EVICTED)
    scale = tl.load(scales + layer)
    band = tl.arange(0, BANDS_P2)
    member = tl.arange(0, COLUMNS)
    member_ok = (member < GROUP)[None, :]

    turn = field(fields, request, COMPUTED).to(tl.float64) * tl.load(
        turns + band, mask=band < BANDS, other=0.0
    )
    cos, sin = cos_sin(turn)
    cos, sin = cos[:, None], sin[:, None]
    cos2, sin2 = cos * cos - sin * sin, 2 * cos * sin
    PLANE: tl.constexpr = LAYERS * HEADS * GROUP * BANDS
    vectors = queries + ((layer * HEADS + head) * GROUP + member)[None, :] * BANDS + band[:, None]
    mask = member_ok & (band < BANDS)[:, None]
    real = tl.load(vectors, mask=mask, other=0.0)
    imag = tl.load(vectors + PLANE, mask=mask, other=0.0)
    size = tl.load(vectors + 2 * PLANE, mask=mask, other=0.0)
    long = tl.load(vectors + 3 * PLANE, mask=mask, other=0.0)
    slant = tl.load(vectors + 4 * PLANE, mask=mask, other=0.0)
    mean_real, mean_imag = real * cos - imag * sin, real * sin + imag * cos
    along, across = long * cos2 - slant * sin2, 2 * (long * sin2 + slant * cos2)
    on_real, on_imag = size + along, size - along

    top = tl.full([COLUMNS], float("-inf"), tl.float32)
    mass = tl.zeros([COLUMNS], tl.float32)
    first = chunk * tiles * TILE
    for start in range(first, tl.minimum(first + tiles * TILE, resident), TILE):
        index = start + tl.arange(0, TILE)
        valid = index < resident
        rows = key_rows(base, table, index, resident, block_stride, token_stride, BLOCK_SIZE)
        left = load_dims(rows, band * PAIR_STEP, dim_stride, BANDS, BANDS_P2).to(tl.float32) * scale
        right = load_dims(rows, band * PAIR_STEP + PAIR_GAP, dim_stride, BANDS, BANDS_P2).to(tl.float32)
        right *= scale
        total = tl.zeros([TILE, COLUMNS], tl.float32)
        total = product32(left, mean_real, total)
        total = product32(right, mean_imag, total)
        total = product32(left * left, on_real, total)
        total = product32(right * right, on_imag, total)
        total = product32(left * right, across, total)
        out = logits + (row * GROUP + member[None, :]) * stride + index[:, None]
        tl.store(out, total, mask=valid[:, None] & member_ok)
        position = row_positions(slots, table, index, valid, previous, evicted, BLOCK_SIZE)
        counted = (valid & (position >= SINKS))[:, None] & (tl.abs(total) < float("inf"))
        higher = tl.maximum(top, tl.max(tl.where(counted, total, float("-inf")), axis=0))
        # Where nothing counts yet, anything finite serves.
        zero = tl.where(higher == float("-inf"), 0.0, higher)
        mass *= tl.exp(top - zero)
        mass += tl.sum(tl.where(counted, tl.exp(tl.where(counted, total, 0.0) - zero[None, :]), 0.0), axis=0)
        top = higher
    into = masses + (row * chunks + chunk) * 2 * GROUP + member
    tl.store(into, top, mask=member < GROUP)
    tl.store(into + GROUP, mass, mask=member < GROUP)


@per_round("chunks", "tiles", "raw_stride16", "channel", "fields")
def softmax_kernel(
    raw,  # float32 [requests, LAYERS, HEADS, CHANNELS, raw_stride16 * 16], out: one channel of it
    logits,  # float32 [requests, LAYERS, HEADS, GROUP, raw_stride16 * 16]
    masses,  # float32 [requests, LAYERS, HEADS, chunks, 2, GROUP]
    fields,  # int32 [requests, 9]
    chunks,
    tiles,
    raw_stride16,
    channel,
    weight,
    log_group,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNKS_P2: tl.constexpr,
    CHANNELS: tl.constexpr,
    ADD: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: the logarithm of the mean probability of TILE entries of one (request, layer, KV head)."""
    program = tl.program_id(0)
    tile = program % tiles
    row = (program // tiles).to(tl.int64)
    request = program // (tiles * ROWS)
    resident = field(fields, request, RESIDENT)
    if (field(fields, request, KEEP) >= resident) | (tile * TILE >= resident):
        return
    stride = raw_stride16 * 16
    member = tl.arange(0, COLUMNS)
    member_ok = (member < GROUP)[None, :]
    chunk = tl.arange(0, CHUNKS_P2)[:, None]
    part = masses + (row * chunks + chunk) * 2 * GROUP + member[None, :]
    have = (chunk < chunks) & member_ok
    tops = tl.load(part, mask=have, other=float("-inf"))
    top = tl.max(tops, axis=0)
    zero = tl.where(top == float("-inf"), 0.0, top)
    mass = tl.sum(tl.load(part + GROUP, mask=have, other=0.0) * tl.exp(tops - zero[None, :]), axis=0)
    whole = tl.where(mass > 0, zero + tl.log(tl.where(mass > 0, mass, 1.0)), 0.0)
    index = tile * TILE + tl.arange(0, TILE)
    valid = index < resident
    source = logits + (row * GROUP + member[None, :]) * stride + index[:, None]
    value = tl.load(source, mask=valid[:, None] & member_ok, other=float("-inf")) - whole[None, :]
    best = tl.max(value, axis=1)
    best = tl.where(tl.abs(best) < float("inf"), best, 0.0)
    score = best + tl.log(tl.sum(tl.exp(value - best[:, None]), axis=1)) - log_group
    put(raw + (row * CHANNELS + channel) * stride, index, score, weight, valid, ADD)
