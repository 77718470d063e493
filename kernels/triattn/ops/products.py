"""Reading tiles of keys, and products with them on the tensor cores that are exact to about float32.

A float32 matrix is cut into three bfloat16 parts of 8 bits each, exactly; they lie side by side as columns, so that
one product with the keys, which are bfloat16 or exact sums of a few bfloat16, serves all parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from triattn.ops.common import INTERPRETED

SPLITS = tl.constexpr(4)
"""Column groups of a split matrix: three parts and one of zeros, since sizes are powers of two."""

EPSILON = tl.constexpr(1e-12)
"""Smallest length that a vector is divided by, as in triattn.policies.keydiff."""


@triton.jit
def high_bits(x):
    """float32 cut to the 8 significant bits that bfloat16 holds. A mask: conversions are slow."""
    return (x.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def split_columns(x, part):
    """Of x [K, N] float32, in column n the part that `part` [N] says: 0, 1, 2 add up to x; 3 is zero."""
    part = part[None, :]
    high = high_bits(x)
    middle = high_bits(x - high)
    low = x - high - middle
    return tl.where(part == 0, high, tl.where(part == 1, middle, tl.where(part == 2, low, 0.0)))


@triton.jit
def matmul(a, b, total):
    """total + a @ b for bfloat16 operands."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        return tl.dot(a, b, total)


@triton.jit
def product(a, b, total, PARTS: tl.constexpr):
    """total + a @ b. `a` is a sum of PARTS bfloat16 matrices and b bfloat16, or (0 parts) both are float32."""
    if PARTS == 0:
        return tl.dot(a, b, total, input_precision="ieee")
    elif PARTS == 1:
        return matmul(a.to(tl.bfloat16), b, total)
    else:
        wide = a.to(tl.float32)
        high = high_bits(wide)
        total = matmul(high.to(tl.bfloat16), b, total)
        return matmul((wide - high).to(tl.bfloat16), b, total)


@triton.jit
def product32(a, b, total):
    """total + a @ b of float32: three TF32 products, exact to about float32."""
    return tl.dot(a, b, total, input_precision="tf32x3")


@triton.jit
def fold_parts(total, TILE: tl.constexpr, COLUMNS: tl.constexpr):
    """Add the parts of a product with a split matrix: [TILE, SPLITS * COLUMNS] to [TILE, COLUMNS]."""
    return tl.sum(tl.reshape(total, [TILE, SPLITS, COLUMNS]), axis=1)


@triton.jit
def load_dims(rows, dims, stride, WANTED: tl.constexpr, LOADED: tl.constexpr):
    """Dimensions `dims` [LOADED] of keys at pointers `rows` [TILE], of the cache's dtype; only WANTED exist.

    Rows are not masked: the caller points those beyond the last at the last.
    """
    where = rows[:, None] + (dims * stride)[None, :]
    if WANTED == LOADED:
        return tl.load(where)
    else:
        mask = (tl.arange(0, LOADED) < WANTED)[None, :]
        return tl.load(where, mask=tl.broadcast_to(mask, where.shape), other=0.0)


@triton.jit
def key_rows(base, table, index, resident, block_stride, token_stride, BLOCK_SIZE: tl.constexpr):
    """Pointers at the keys of a head, for row indices `index`; from the last resident on, at that one."""
    index = tl.minimum(index, resident - 1)
    block = tl.load(table + index // BLOCK_SIZE)
    return base + block.to(tl.int64) * block_stride + (index % BLOCK_SIZE) * token_stride
