"""The ring of queries: its kernels against their plain-torch oracles, and what a request reads back."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policies.builders import shape
from triattn.ops.queries import QueryRing, place_oracle, write_oracle

pytestmark = pytest.mark.slow
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODEL = shape(layers=2, kv_heads=2, group=3, head_dim=20)


def ring(length: int, tokens: int, *, kernels: bool = True) -> QueryRing:
    """Room for 6 requests."""
    return QueryRing(
        MODEL, 6, length, tokens, torch.float32, [0.5, 0.25], torch.device(DEVICE), kernels=kernels
    )


@given(
    length=st.integers(1, 9),
    chunks=st.lists(st.integers(1, 14), min_size=1, max_size=4),
    computed=st.integers(0, 1000),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=15, deadline=None)
def test_kernels_are_the_oracles(length: int, chunks: list[int], computed: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    total, tokens = sum(chunks), sum(chunks) + 5
    positions = torch.cat([torch.arange(n) + computed + 7 * i for i, n in enumerate(chunks)])
    positions = torch.cat([positions, torch.full((5,), 99)]).to(DEVICE)
    start = torch.tensor(
        [0, *torch.tensor(chunks).cumsum(0).tolist(), total, total], dtype=torch.int32, device=DEVICE
    )
    rows = torch.randperm(6, generator=generator)[: len(chunks)].int().to(DEVICE)
    ours = ring(length, tokens)
    ours.slots.fill_(3)
    ours.place(positions, start, rows)
    want = torch.empty_like(ours.slots)
    place_oracle(want, positions, start, rows, length)
    assert torch.equal(ours.slots, want)
    # Queries as vLLM has them: a slice of one projection.
    wide = torch.randn(tokens, 9, 20, generator=generator).to(DEVICE)
    buffer = copy.deepcopy(ours.buffer)
    write_oracle(buffer[1], wide[:, :6], ours.slots)
    ours.write(1, wide[:, :6])
    assert torch.equal(ours.buffer, buffer)
    assert buffer.any()


@pytest.mark.parametrize("kernels", [False, True])
def test_a_request_reads_its_last_queries_in_order(kernels: bool) -> None:
    """A prompt in chunks longer and shorter than the ring, then single tokens; another request beside it."""
    ours = ring(4, 16, kernels=kernels)
    written: list[torch.Tensor] = []
    for chunk in (7, 2, 1, 1, 1):
        query = torch.randn(chunk + 3, 6, 20, device=DEVICE)
        positions = (
            torch.cat([torch.arange(chunk) + len(written), torch.arange(2), torch.zeros(1)]).long().to(DEVICE)
        )
        start, rows = (torch.tensor(x).int().to(DEVICE) for x in ([0, chunk, chunk + 2], [5, 0]))
        ours.place(positions, start, rows)
        ours.write(0, query)
        written += list(query[:chunk])
        want = torch.stack(written[-4:], dim=1) * 0.5
        assert torch.equal(ours.read(0, 5, len(written), 4), want)
        assert torch.equal(ours.read(0, 0, 2, 2), query[chunk : chunk + 2].transpose(0, 1) * 0.5)
    before = ours.buffer.clone()
    ours.nothing()
    ours.write(0, torch.ones(16, 6, 20, device=DEVICE))
    assert torch.equal(ours.buffer, before)


def test_more_tokens_than_were_prepared_for_are_an_error() -> None:
    with pytest.raises(ValueError, match="17 tokens in a step, prepared for 16"):
        ring(4, 16).write(0, torch.zeros(17, 6, 20, device=DEVICE))
