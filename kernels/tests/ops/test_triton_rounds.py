"""The Triton kernels against the plain-torch oracle: interpreted on a CPU, compiled where there is a GPU.

Kept entries and positions must be the oracle's exactly; the scores of random data leave no near ties.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.ops.caches import Case, case
from tests.policies.builders import policy, shape, statistics
from triattn.ops.torch_rounds import TorchRounds
from triattn.ops.triton_rounds import TritonRounds, Tuning

pytestmark = pytest.mark.slow

SHORT = Tuning(score_tile=32, anchor_tile=16, anchor_tiles=2, aggregate_tile=32, move_tile=32)
"""Rows fit in one program."""
LONG = Tuning(
    score_tile=32,
    anchor_tile=16,
    anchor_tiles=2,
    aggregate_tile=32,
    move_tile=32,
    row_blocks=(16,),
    long_block=32,
    long_count=32,
)
"""Rows longer than a program: the separate kernels."""

REQUESTS: list[dict[str, Any]] = [
    {"resident": 90, "keep": 61},
    {"resident": 140, "keep": 100, "previous": 80, "evicted": 40, "prompt_len": 10, "pin": True},
    {"resident": 20, "keep": 30},
]
EACH = {"selection": "per_layer_per_head"}
POLICIES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "random": ([{"kind": "random"}], {**EACH, "normalize": "none"}),
    "streaming": ([{"kind": "recency"}], {"selection": "union", "normalize": "none"}),
    "triattention": ([{"kind": "trig"}, {"kind": "norm"}], {"selection": "per_head"}),
    "keydiff": ([{"kind": "keydiff"}], {**EACH, "normalize": "none"}),
    "blend": ([{"kind": "keydiff"}, {"kind": "trig"}, {"kind": "norm"}], {**EACH, "normalize": "each"}),
    "max": (
        [{"kind": "trig", "offsets": "max"}, {"kind": "norm", "residual": False}],
        {"selection": "union"},
    ),
}


def both(name: str, tuning: Tuning, dtype: torch.dtype, **model: Any) -> tuple[Case, Case]:
    """The same case after a round by the kernels and by the oracle."""
    generator = torch.Generator().manual_seed(1)
    layout = model.pop("layout", "nhd")
    this = shape(**{"layers": 2, "kv_heads": 2, "group": 2, "head_dim": 32, **model})
    terms, fields = POLICIES[name]
    compiled = policy(*terms, pin={"prompt": True, "sinks": 1, "window": 2}, **fields)
    ours = case(this, REQUESTS, layout=layout, block_size=16, dtype=dtype, gen=generator)
    stats = statistics(this, generator)
    oracle = copy.deepcopy(ours)
    TorchRounds(oracle.caches, oracle.positions, this, compiled, stats).run(oracle.batch)
    rounds = TritonRounds(
        ours.caches, ours.positions, this, compiled, stats, tuning=tuning, workspace_bytes=1 << 20
    )
    rounds.run(ours.batch)
    return ours, oracle


def check(ours: Case, oracle: Case) -> None:
    """Every kept row holds the oracle's K, V and position."""
    for number, plan in enumerate(oracle.plans):
        if plan.keep >= plan.resident:
            continue
        index = torch.arange(plan.keep)
        table = oracle.batch.block_tables[int(oracle.batch.fields[number, 0])]
        size = oracle.positions.shape[-1]
        blocks, offsets = table[index // size].long(), index % size
        assert torch.equal(ours.positions[:, :, blocks, offsets], oracle.positions[:, :, blocks, offsets])
        for mine, theirs in zip(ours.caches, oracle.caches, strict=True):
            for which in ("k", "v"):
                got, want = (cache.read(which, blocks, offsets).float() for cache in (mine, theirs))
                assert torch.equal(got, want)


@pytest.mark.parametrize("tuning", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_round_is_the_oracles(name: str, tuning: Tuning) -> None:
    check(*both(name, tuning, torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_every_cache_dtype(dtype: torch.dtype) -> None:
    check(*both("triattention", SHORT, dtype))


@pytest.mark.parametrize(
    "model",
    [
        {"group": 1, "head_dim": 64},
        {"group": 4, "kv_heads": 1, "head_dim": 80},
        {"group": 8, "kv_heads": 1, "head_dim": 128, "layers": 1},
        {"layout": "hnd"},
        {"layout": "split"},
        {"layout": "transposed"},
    ],
    ids=str,
)
def test_every_shape_and_layout(model: dict[str, Any]) -> None:
    check(*both("blend", SHORT, torch.float32, **model))


def test_the_check_bites() -> None:
    """One entry moved to a wrong place is seen."""
    ours, oracle = both("random", SHORT, torch.float32)
    table = ours.batch.block_tables[int(ours.batch.fields[0, 0])]
    ours.positions[0, 0, int(table[0]), 3] += 1
    with pytest.raises(AssertionError):
        check(ours, oracle)


def test_block_copies_carry_positions() -> None:
    generator = torch.Generator().manual_seed(2)
    this = shape(layers=2, kv_heads=2, group=1, head_dim=32)
    compiled = policy({"kind": "random"}, normalize="none", selection="per_layer_per_head")
    ours = case(this, REQUESTS, block_size=16, gen=generator)
    oracle = copy.deepcopy(ours)
    pairs = torch.tensor([[1, 4], [2, 0]], dtype=torch.int32)
    TorchRounds(oracle.caches, oracle.positions, this, compiled).copy_blocks(pairs)
    TritonRounds(ours.caches, ours.positions, this, compiled, workspace_bytes=1 << 20).copy_blocks(pairs)
    assert torch.equal(ours.positions, oracle.positions)
    for mine, theirs in zip(ours.caches, oracle.caches, strict=True):
        assert torch.equal(mine.k, theirs.k)
        assert torch.equal(mine.v, theirs.v)
