"""The last queries of every running request, kept on the device for terms that observe attention.

Attention layers write them as they run, captured in full CUDA graphs or not: where each token's query goes is read
from a buffer that the runner fills before the step. Beside each kernel its plain-torch oracle.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from triattn.policies import ModelShape


class QueryRing:
    """Queries of the last `length` positions of up to `rows` requests; position p lies at p % length.

    Attributes:
        buffer: [layers, rows, length, query_heads, head_dim] of the model's dtype, rotated.
        scales: float32 [layers], what each layer's attention multiplies q·k by.
        slots: int32 [tokens], for each token of a step its row * length + position % length, or -1: its query is not
            kept. Kernels of captured graphs read it at this address.
    """

    def __init__(
        self,
        shape: ModelShape,
        rows: int,
        length: int,
        tokens: int,
        dtype: torch.dtype,
        scales: Sequence[float],
        device: torch.device,
        *,
        kernels: bool,
    ) -> None:
        size = (shape.layers, rows, length, shape.query_heads, shape.head_dim)
        self.buffer = torch.zeros(size, dtype=dtype, device=device)
        self.scales = torch.tensor(scales, dtype=torch.float32, device=device)
        self.slots = torch.full((tokens,), -1, dtype=torch.int32, device=device)
        self._kernels = kernels

    @property
    def length(self) -> int:
        """Queries kept of a request."""
        return self.buffer.shape[2]

    @property
    def bytes(self) -> int:
        """Size of the buffer."""
        return self.buffer.numel() * self.buffer.element_size()

    def read(self, layer: int, row: int, computed: int, count: int) -> Tensor:
        """Queries of positions computed - count … computed - 1, times the scale: float32 [query_heads, count, D]."""
        at = torch.arange(computed - count, computed, device=self.buffer.device) % self.length
        return self.buffer[layer, row, at].float().transpose(0, 1) * self.scales[layer]

    def write(self, layer: int, query: Tensor) -> None:
        """Keep a layer's queries [tokens, query_heads, D] of this step where `slots` says.

        Raises:
            ValueError: more tokens than slots.
        """
        if query.shape[0] > self.slots.shape[0]:
            raise ValueError(f"{query.shape[0]} tokens in a step, prepared for {self.slots.shape[0]}")
        if not self._kernels:
            write_oracle(self.buffer[layer], query, self.slots)
            return
        width = query.shape[1] * query.shape[2]
        _write_kernel[(query.shape[0],)](
            self.buffer[layer],
            query,
            self.slots,
            *query.stride(),
            HEAD_DIM=query.shape[2],
            WIDTH=width,
            WIDTH_P2=triton.next_power_of_2(width),
        )

    def place(self, positions: Tensor, query_start_loc: Tensor, rows: Tensor) -> None:
        """Fill `slots` for a step on the device, with no host read-back.

        Args:
            positions: int64 [>= T], logical; query_start_loc: int32 [>= B + 1]; rows: int32 [B], of the ring.
        """
        requests = rows.shape[0]
        if not self._kernels:
            place_oracle(self.slots, positions, query_start_loc, rows, self.length)
            return
        _place_kernel[(requests + 1,)](
            self.slots,
            positions,
            query_start_loc,
            rows,
            requests,
            self.slots.shape[0],
            LENGTH=self.length,
            TOKENS=1024,
        )

    def nothing(self) -> None:
        """No query of the next step is kept: it is a dummy."""
        self.slots.fill_(-1)


def write_oracle(buffer: Tensor, query: Tensor, slots: Tensor) -> None:
    """Plain-torch form of ``QueryRing.write`` for one layer's buffer [rows, length, query_heads, D]."""
    slots = slots[: query.shape[0]]
    kept = (slots >= 0).nonzero().flatten()
    buffer.flatten(0, 1)[slots[kept].long()] = query[kept].to(buffer.dtype)


def place_oracle(
    slots: Tensor, positions: Tensor, query_start_loc: Tensor, rows: Tensor, length: int
) -> None:
    """Plain-torch form of ``QueryRing.place``."""
    slots.fill_(-1)
    for index, row in enumerate(rows.tolist()):
        start, end = int(query_start_loc[index]), int(query_start_loc[index + 1])
        # Of a chunk longer than the ring only its last queries: two would meet in one place.
        start = max(start, end - length)
        slots[start:end] = (row * length + positions[start:end] % length).int()


@triton.jit
def _write_kernel(
    buffer,  # [rows * length, WIDTH], a layer's
    query,  # [tokens, query_heads, HEAD_DIM], any strides
    slots,  # int32 [tokens]
    token_stride,
    head_stride,
    dim_stride,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_P2: tl.constexpr,
):
    """One program: one token's query of all heads."""
    token = tl.program_id(0)
    slot = tl.load(slots + token).to(tl.int64)
    if slot < 0:
        return
    at = tl.arange(0, WIDTH_P2)
    mask = at < WIDTH
    where = token.to(tl.int64) * token_stride + (at // HEAD_DIM) * head_stride + (at % HEAD_DIM) * dim_stride
    tl.store(buffer + slot * WIDTH + at, tl.load(query + where, mask=mask), mask=mask)


@triton.jit(do_not_specialize=["requests", "tokens"])
def _place_kernel(
    slots,
    positions,
    query_start_loc,
    rows,
    requests,
    tokens,
    LENGTH: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One program: the tokens of one request; the last one those behind all requests, which graphs see as padding."""
    index = tl.program_id(0)
    start = tl.load(query_start_loc + index)
    last = index == requests
    end = tokens
    row = tl.zeros([], tl.int32)
    if not last:
        end = tl.load(query_start_loc + index + 1)
        row = tl.load(rows + index).to(tl.int32)
    for first in range(start, end, TOKENS):
        token = first + tl.arange(0, TOKENS)
        inside = token < end
        kept = inside & (token >= end - LENGTH) & (index < requests)
        position = tl.load(positions + token, mask=kept, other=0)
        slot = row * LENGTH + (position % LENGTH).to(tl.int32)
        tl.store(slots + token, tl.where(kept, slot, -1), mask=inside)
