"""What a round kept, as a picture: how many tokens each layer and KV head keeps of each slice of the context.

Made on the device from the table of positions, without waiting for it; only while somebody watches.
"""

from __future__ import annotations

import torch

MOST_BINS = 64
MOST_COUNTS = 1 << 18
"""Numbers in one picture, so that it fits a message: 512 KiB of uint16."""

ENTRIES_AT_ONCE = 1 << 20
"""Table entries looked at in one go: 16 MiB of scratch memory, on a device that has little left."""

SATURATED = 65535


def bins_of(layers: int, kv_heads: int, computed: int) -> int:
    """Equal slices of the logical positions [0, computed), at least one."""
    return max(1, min(MOST_BINS, computed, MOST_COUNTS // (layers * kv_heads)))


def histogram(
    positions: torch.Tensor, blocks: torch.Tensor, keep: int, computed: int, bins: int
) -> torch.Tensor:
    """Tokens kept in each slice, int32 [layers, kv_heads, bins] on the device of ``positions``.

    Args:
        positions: int32 [layers, kv_heads, num_blocks, block_size], valid for the rows that the round kept.
        blocks: integer [at least ceil(keep / block_size)], block ids of the request on the same device.
        keep: resident tokens after the round; computed: logical length at the round.
    """
    layers, heads, _, size = positions.shape
    used = blocks[: -(-keep // size)].long()
    counts = torch.zeros((layers, heads, bins), dtype=torch.int32, device=positions.device)
    at_once = max(1, ENTRIES_AT_ONCE // (heads * keep))
    for first in range(0, layers, at_once):
        part = slice(first, first + at_once)
        kept = positions[part, :, used].flatten(2)[:, :, :keep].long()
        # Position p lies in slice floor(p * bins / computed).
        slices = kept.mul_(bins).div_(computed, rounding_mode="floor")
        counts[part].scatter_add_(2, slices, torch.ones_like(slices, dtype=torch.int32))
    return counts


def encode(counts: torch.Tensor) -> bytes:
    """A histogram on the host as uint16, little-endian, in row-major order; counts saturate."""
    return counts.clamp(max=SATURATED).numpy().astype("<u2").tobytes()
