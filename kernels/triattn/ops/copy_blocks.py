"""Copies of whole blocks, K, V, positions and what terms remember, in every layer of a group, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl

from triattn.ops.common import layer_base, per_round


@triton.jit
def copy_part(
    base, source, target, head, offset, dim, mask, block_stride, head_stride, token_stride, dim_stride
):
    """One tile of tokens of one head of K or V."""
    inside = head * head_stride + offset[:, None] * token_stride + (dim * dim_stride)[None, :]
    entries = tl.load(base + source * block_stride + inside, mask=mask)
    tl.store(base + target * block_stride + inside, entries, mask=mask)


@per_round("pairs")
def copy_blocks_kernel(
    pairs,  # int32 [n, 2]: source, destination; a negative source copies nothing
    key_bases,  # int64 [GROUP_LAYERS]
    value_bases,  # int64 [GROUP_LAYERS]
    layers,  # int32 [GROUP_LAYERS]
    positions,  # int32 [LAYERS, HEADS, blocks, BLOCK_SIZE]
    memory,  # float32 [PLANES, LAYERS, HEADS, blocks, BLOCK_SIZE]
    memory_plane,
    position_layer_stride,
    position_head_stride,
    k_block_stride,
    k_head_stride,
    k_token_stride,
    k_dim_stride,
    v_block_stride,
    v_head_stride,
    v_token_stride,
    v_dim_stride,
    DTYPE: tl.constexpr,
    ALIGN: tl.constexpr,
    GROUP_LAYERS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_P2: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PLANES: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program: one head of one block of one layer, TILE tokens at a time."""
    program = tl.program_id(0)
    head = program % HEADS
    slot = (program // HEADS) % GROUP_LAYERS
    pair = pairs + program // (HEADS * GROUP_LAYERS) * 2
    source = tl.load(pair).to(tl.int64)
    target = tl.load(pair + 1).to(tl.int64)
    if source < 0:
        return
    keys = layer_base(key_bases, slot, DTYPE, ALIGN)
    values = layer_base(value_bases, slot, DTYPE, ALIGN)
    row = tl.load(layers + slot).to(tl.int64) * position_layer_stride + head * position_head_stride
    slots = positions + row
    dim = tl.arange(0, HEAD_DIM_P2)
    for start in range(0, BLOCK_SIZE, TILE):
        offset = start + tl.arange(0, TILE)
        inside = offset < BLOCK_SIZE
        mask = inside[:, None] & (dim < HEAD_DIM)[None, :]
        copy_part(
            keys,
            source,
            target,
            head,
            offset,
            dim,
            mask,
            k_block_stride,
            k_head_stride,
            k_token_stride,
            k_dim_stride,
        )
        copy_part(
            values,
            source,
            target,
            head,
            offset,
            dim,
            mask,
            v_block_stride,
            v_head_stride,
            v_token_stride,
            v_dim_stride,
        )
        position = tl.load(slots + source * BLOCK_SIZE + offset, mask=inside)
        tl.store(slots + target * BLOCK_SIZE + offset, position, mask=inside)
        for plane in tl.static_range(PLANES):
            remembered = memory + plane * memory_plane + row
            value = tl.load(remembered + source * BLOCK_SIZE + offset, mask=inside)
            tl.store(remembered + target * BLOCK_SIZE + offset, value, mask=inside)
