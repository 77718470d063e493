"""What a round kept, counted by slices of the context; and the time that rounds took."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triattn.engines import kept
from triattn.engines.clock import RoundClock


@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    block_size=st.sampled_from([16, 32, 64]),
    computed=st.integers(1, 5000),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31),
    at_once=st.sampled_from([1, 5000, 1 << 20]),
)
def test_against_numpy(
    layers: int, heads: int, block_size: int, computed: int, share: float, seed: int, at_once: int
) -> None:
    rng = np.random.default_rng(seed)
    keep = max(1, int(computed * share))
    used = -(-keep // block_size)
    blocks = rng.permutation(used + 5)[: used + 2]
    rows = np.stack(
        [np.stack([np.sort(rng.permutation(computed)[:keep]) for _ in range(heads)]) for _ in range(layers)]
    )
    # What lies in other blocks and past the last row is nothing of this request.
    positions = rng.integers(0, 2**31 - 1, (layers, heads, used + 5, block_size), dtype=np.int32)
    for index in range(keep):
        positions[:, :, blocks[index // block_size], index % block_size] = rows[:, :, index]
    bins = kept.bins_of(layers, heads, computed)
    table = torch.from_numpy(blocks.astype(np.int32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "ENTRIES_AT_ONCE", at_once)
        counts = kept.histogram(torch.from_numpy(positions), table, keep, computed, bins)
    assert counts.shape == (layers, heads, bins)
    for layer, head in np.ndindex(layers, heads):
        expected = np.bincount(rows[layer, head] * bins // computed, minlength=bins)
        assert (counts[layer, head].numpy() == expected).all()


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 10**7))
def test_a_picture_fits_a_message(layers: int, heads: int, computed: int) -> None:
    bins = kept.bins_of(layers, heads, computed)
    assert 1 <= bins <= min(64, computed)
    assert 2 * layers * heads * bins <= 2**19


def test_counts_saturate() -> None:
    counts = torch.tensor([[[0, 1, 65535, 65536, 2**31 - 1]]], dtype=torch.int32)
    assert np.frombuffer(kept.encode(counts), "<u2").tolist() == [0, 1, 65535, 65535, 65535]


def test_clock() -> None:
    clock = RoundClock(torch.device("cpu"))
    assert not clock.pending
    assert clock.take() == 0
    for _ in range(2):
        clock.start()
        sum(range(10_000))
        clock.stop()
    assert clock.pending
    assert clock.take() > 0
    assert clock.take() == 0


class Event:
    """A CUDA event on a clock of its own."""

    now = 0.0
    reached = True

    def record(self) -> None:
        self.at = Event.now

    def query(self) -> bool:
        return Event.reached

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1000


def test_batches_that_pass_while_one_is_measured_count_as_much() -> None:
    clock = RoundClock(torch.device("cpu"))
    clock._on_gpu, clock._events = True, (Event(), Event())
    Event.reached = False
    for duration in (2.0, 7.0, 7.0):
        clock.start()
        Event.now += duration
        clock.stop()
    assert clock.pending
    assert clock.take() == 0
    Event.reached = True
    assert clock.take() == 3 * 2.0
    clock.start()
    Event.now += 1.0
    clock.stop()
    assert clock.take() == 1.0
    assert not clock.pending
