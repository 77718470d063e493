"""Small device functions that several kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""The interpreter multiplies bfloat16 matrices as if they were integers; there they are widened first."""

# Columns of RoundBatch.fields.
ROW = tl.constexpr(0)
RESIDENT = tl.constexpr(1)
PREVIOUS = tl.constexpr(2)
EVICTED = tl.constexpr(3)
KEEP = tl.constexpr(4)
COMPUTED = tl.constexpr(5)
PROMPT_LEN = tl.constexpr(6)
PIN_PROMPT = tl.constexpr(7)
KNOWN = tl.constexpr(8)
FIELD_COUNT = tl.constexpr(9)


def per_round(*names: str) -> Callable[[Callable[..., None]], Any]:
    """A kernel whose arguments of these names change from round to round.

    It is never compiled for a value (1, a multiple of 16) or an alignment that they happen to have: what warm-up
    compiled is all there is.
    """
    return triton.jit(do_not_specialize=names, do_not_specialize_on_alignment=names)


@triton.jit
def field(fields, request, which: tl.constexpr):
    """One column of a request's row of RoundBatch.fields."""
    return tl.load(fields + request * FIELD_COUNT + which)


@triton.jit
def table_of(fields, tables, table_stride, request):
    """A request's row of the block tables, int32."""
    return tables + field(fields, request, ROW).to(tl.int64) * table_stride


@triton.jit
def lowest_if_nan(x):
    """-inf where x is not a number."""
    return tl.where(x != x, float("-inf"), x)  # noqa: PLR0124


@triton.jit
def evictable_span(fields, request, sinks, window):
    """Positions that the round may evict: from the first up to, not including, the second."""
    prompt = tl.where(field(fields, request, PIN_PROMPT) != 0, field(fields, request, PROMPT_LEN), 0)
    return tl.maximum(prompt, sinks), field(fields, request, COMPUTED) - window


@triton.jit
def load_positions(slots, index, mask, previous, evicted):
    """Logical positions; `slots` points at the entries' places in the table of positions."""
    stored = index < previous
    return tl.where(stored, tl.load(slots, mask=mask & stored, other=0), index + evicted)


@triton.jit
def row_positions(slots, table, index, valid, previous, evicted, BLOCK_SIZE: tl.constexpr):
    """Logical positions of the entries at row indices `index`; `slots` points at a head's table of positions."""
    at = tl.load(table + index // BLOCK_SIZE, mask=valid, other=0) * BLOCK_SIZE + index % BLOCK_SIZE
    return load_positions(slots + at, index, valid, previous, evicted)


@triton.jit
def cos_sin(turn):
    """Cosine and sine, float32, of float64 revolutions, without the whole ones: exact enough at any length."""
    angle = (turn - tl.floor(turn)).to(tl.float32) * 6.283185307179586
    return tl.cos(angle), tl.sin(angle)


@triton.jit
def unturned(real, imag, position, turns, band, BANDS: tl.constexpr):
    """Keys [TILE, bands] as they were before the rotary embedding at `position` [TILE]; `turns` float64 [BANDS].

    Angles are whole numbers of 2^-32 revolutions, whose product with a position is right modulo one: half of one off
    for each token of the position, 1e-4 radians at 131,072. Sine and cosine are the hardware's, to 2^-20.
    """
    step = tl.load(turns + band, mask=band < BANDS, other=0.0)
    step = (step * 4294967296.0 + 0.5).to(tl.int64).to(tl.uint32)
    phase = position.to(tl.uint32)[:, None] * step[None, :]
    angle = phase.to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09
    if INTERPRETED:
        cos, sin = tl.cos(angle), tl.sin(angle)
    else:
        cos, sin = libdevice.fast_cosf(angle), libdevice.fast_sinf(angle)
    return real * cos + imag * sin, imag * cos - real * sin


@triton.jit
def mix(x):
    """The finalizer of MurmurHash3 on uint32."""
    x = x ^ (x >> 16)
    x = x * 0x85EBCA6B
    x = x ^ (x >> 13)
    x = x * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def mix_in(state, value):
    """The next state after int32 `value`."""
    return mix((state + 0x9E3779B9) ^ value.to(tl.uint32, bitcast=True))


@triton.jit
def uniform(seed_state, computed, layer_id, head_id, position):
    """float32 in [0, 1), equal to triattn.policies.random.uniform; `seed_state` is mix(seed) as int32."""
    state = mix_in(seed_state.to(tl.uint32, bitcast=True), computed)
    state = mix_in(mix_in(state, layer_id), head_id)
    state = mix_in(state, position)
    return (state >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def put(out, index, value, weight, valid, ADD: tl.constexpr):
    """Store a term's values, float32 like `index`, times `weight`; with ADD on top of what is there."""
    value = value * weight
    if ADD:
        value += tl.load(out + index, mask=valid, other=0.0)
    tl.store(out + index, value, mask=valid)


@triton.jit
def layer_base(bases, slot, DTYPE: tl.constexpr, ALIGN: tl.constexpr):
    """A layer's base pointer out of the table of addresses."""
    return tl.multiple_of(tl.load(bases + slot).to(tl.pointer_type(DTYPE)), ALIGN)
