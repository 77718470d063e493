"""Slots and attention lengths of compressed requests: the logical ones minus E.

One launch a step, whatever the number of requests; beside it the plain-torch oracle.
Shapes: tokens T, requests B, state rows S.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def shift_oracle(
    slot_mapping: torch.Tensor,
    kv_seq_lens: torch.Tensor,
    seq_lens: torch.Tensor,
    positions: torch.Tensor,
    query_start_loc: torch.Tensor,
    idx_mapping: torch.Tensor,
    evicted: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
) -> None:
    """Plain-torch form of ``shift_slots_and_lengths``."""
    kv_seq_lens.copy_(seq_lens)
    for index, row in enumerate(idx_mapping.tolist()):
        start, end = int(query_start_loc[index]), int(query_start_loc[index + 1])
        shift = int(evicted[row])
        slots = positions[start:end].long() - shift
        slot_mapping[start:end] = (
            block_table[row].long()[slots // block_size] * block_size + slots % block_size
        )
        kv_seq_lens[index] -= shift


@triton.jit(do_not_specialize=["requests", "rows"])
def _shift_kernel(
    slot_mapping,
    kv_seq_lens,
    seq_lens,
    positions,
    query_start_loc,
    idx_mapping,
    evicted,
    block_table,
    table_stride,
    requests,
    rows,
    BLOCK_SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
):
    index = tl.program_id(0)
    if index == requests:
        # The tail that graphs see as padding: lengths there are zero already in the logical buffer.
        for first in range(requests, rows, TOKENS):
            offset = first + tl.arange(0, TOKENS)
            length = tl.load(seq_lens + offset, mask=offset < rows, other=0)
            tl.store(kv_seq_lens + offset, length, mask=offset < rows)
        return
    row = tl.load(idx_mapping + index).to(tl.int64)
    shift = tl.load(evicted + row)
    tl.store(kv_seq_lens + index, tl.load(seq_lens + index) - shift)
    if shift == 0:
        return
    start = tl.load(query_start_loc + index)
    end = tl.load(query_start_loc + index + 1)
    for first in range(start, end, TOKENS):
        offset = first + tl.arange(0, TOKENS)
        mask = offset < end
        slot = tl.load(positions + offset, mask=mask, other=0) - shift
        block = tl.load(block_table + row * table_stride + slot // BLOCK_SIZE, mask=mask, other=0)
        tl.store(slot_mapping + offset, block.to(tl.int64) * BLOCK_SIZE + slot % BLOCK_SIZE, mask=mask)


def shift_slots_and_lengths(
    slot_mapping: torch.Tensor,
    kv_seq_lens: torch.Tensor,
    seq_lens: torch.Tensor,
    positions: torch.Tensor,
    query_start_loc: torch.Tensor,
    idx_mapping: torch.Tensor,
    evicted: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
) -> None:
    """Rewrite slots to position - E and write lengths - E, in place, with no host read-back.

    Args:
        slot_mapping: int64 [>= T], this cache group's slots; entries of requests with E = 0 stay as they are.
        kv_seq_lens: int32 [S], out: attention lengths; past the batch a copy of ``seq_lens``.
        seq_lens: int32 [S], logical lengths, zero past the batch.
        positions: int64 [>= T], logical; query_start_loc: int32 [>= B + 1]; idx_mapping: int32 [B], state rows.
        evicted: int32 [S], E by state row; block_table: int32 [S, blocks]; block_size: tokens a block.
    """
    requests = idx_mapping.shape[0]
    _shift_kernel[(requests + 1,)](
        slot_mapping,
        kv_seq_lens,
        seq_lens,
        positions,
        query_start_loc,
        idx_mapping,
        evicted,
        block_table,
        block_table.stride(0),
        requests,
        seq_lens.shape[0],
        BLOCK_SIZE=block_size,
        TOKENS=1024,
    )
