"""The Triton kernels against the plain-torch oracle: interpreted on a CPU, compiled where there is a GPU.

Kept entries and positions must be the oracle's exactly; the scores of random data leave no near ties.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import msgspec
import pytest
import torch

from tests.ops.caches import Case, case
from tests.policies.builders import policy, shape, statistics
from triattn import wire
from triattn.config import _presets, preset
from triattn.ops.queries import QueryRing
from triattn.ops.torch_rounds import TorchRounds
from triattn.ops.triton_rounds import TritonRounds, Tuning
from triattn.policies import ModelShape, Policy

pytestmark = pytest.mark.slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHORT = Tuning(
    score_tile=32, anchor_tile=16, anchor_tiles=2, aggregate_tile=32, move_tile=32, superseded_new=16
)
"""Rows fit in one program."""
LONG = Tuning(
    score_tile=32,
    anchor_tile=16,
    anchor_tiles=2,
    aggregate_tile=32,
    move_tile=32,
    superseded_new=32,
    row_blocks=(16,),
    long_block=32,
    long_count=32,
)
"""Rows longer than a program: the separate kernels."""

REQUESTS: list[dict[str, Any]] = [
    {"resident": 90, "keep": 61},
    {"resident": 140, "keep": 100, "previous": 80, "evicted": 40, "prompt_len": 10, "pin": True, "known": 80},
    {"resident": 20, "keep": 30},
]
EACH = {"selection": "per_layer_per_head"}
SUPERSEDED_VALUE: dict[str, Any] = {"kind": "superseded", "space": "value", "weight": 0.5}
DISTINCT: list[dict[str, Any]] = [{"kind": "superseded"}, {"kind": "keydiff"}]
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
    "superseded and probe": (
        [{"kind": "superseded"}, {"kind": "probe", "weight": 2}, {"kind": "recency"}],
        {**EACH, "normalize": "each"},
    ),
    "probe in a sum": (
        [{"kind": "superseded"}, {"kind": "probe", "weight": 2}],
        {**EACH, "normalize": "sum"},
    ),
    "probe": ([{"kind": "probe"}, {"kind": "keydiff"}], {**EACH, "normalize": "each"}),
    "probe alone": ([{"kind": "probe"}], {**EACH, "normalize": "none"}),
    "magnitudes": (
        [{"kind": "vnorm", "log": True}, {"kind": "knorm"}, {"kind": "vrange", "weight": -0.5}],
        {**EACH, "normalize": "sum"},
    ),
    "superseded": ([{"kind": "superseded"}], {**EACH, "normalize": "none"}),
    "expected": (
        [{"kind": "expected"}, {"kind": "vnorm", "log": True}, {"kind": "recency", "weight": 0.01}],
        {**EACH, "normalize": "none"},
    ),
    "expectations": (
        [{"kind": "expected", "horizon": 7}, {"kind": "norm"}, {"kind": "keydiff"}],
        {"selection": "per_head", "normalize": "each", "groupAggregation": "mean"},
    ),
    "leverage": ([{"kind": "leverage"}, {"kind": "gumbel", "weight": 0.01}], {**EACH, "normalize": "none"}),
    "observed": ([{"kind": "observed", "window": 5}], {**EACH, "normalize": "none"}),
    "observations": (
        [
            {"kind": "observed", "window": 20, "reach": 0},
            {"kind": "observed", "window": 5, "reach": 2, "group": "max", "weight": 0.5},
            {"kind": "trig", "weight": 0.01},
        ],
        {"selection": "per_head", "normalize": "each"},
    ),
    "accumulated": ([{"kind": "accumulated", "window": 70}], {**EACH, "normalize": "none"}),
    "accumulations": (
        [
            {"kind": "accumulated", "window": 5},
            {"kind": "observed", "window": 9},
            {"kind": "superseded", "weight": 0.5},
        ],
        {**EACH, "normalize": "each", "reserve": {"share": 0.5, "terms": [{"kind": "recency"}]}},
    ),
    "redundancy": (
        [{"kind": "observed", "group": "max", "window": 8, "weight": 0.1}, {"kind": "redundancy"}],
        {**EACH, "normalize": "none"},
    ),
    "mixed": (
        [{"kind": "trig"}, SUPERSEDED_VALUE, {"kind": "gumbel", "weight": 0.1}, {"kind": "recency"}],
        {"selection": "per_head", "normalize": "each"},
    ),
    "added": ([{"kind": "trig"}, SUPERSEDED_VALUE, {"kind": "random"}], {"selection": "per_head"}),
    "reserve": (
        [{"kind": "trig"}, {"kind": "norm"}, {"kind": "keydiff", "weight": 0.5}],
        {**EACH, "normalize": "each", "reserve": {"share": 0.5, "terms": DISTINCT}},
    ),
    "segments": (
        [{"kind": "trig"}, {"kind": "norm"}],
        {"selection": "per_head", "segments": {"count": 4, "share": 0.5}},
    ),
    "both": (
        [{"kind": "keydiff"}, {"kind": "gumbel"}],
        {
            "selection": "union",
            "normalize": "each",
            "segments": {"count": 3},
            "reserve": {"share": 0.5, "terms": DISTINCT},
        },
    ),
}
POLICIES["learned"] = (
    [{"kind": "trig"}],
    {
        **EACH,
        "normalize": "each",
        "groupAggregation": "mean",
        "learned": True,
        "reserve": {"share": 0.5, "terms": DISTINCT},
    },
)
LEARNED = ("superseded", "recency", "trig", "norm", "keydiff", "knorm", "vnorm", "probe")
SEPARATE_KERNELS = [
    "random",
    "triattention",
    "blend",
    "mixed",
    "expected",
    "redundancy",
    "accumulated",
    "probe alone",
    "reserve",
    "both",
]
"""Policies that between them use every kernel for rows longer than a program."""


def both(
    name: str | wire.PolicyDocument, tuning: Tuning, dtype: torch.dtype, **model: Any
) -> tuple[Case, Case]:
    """The same case after a round by the kernels and by the oracle, for a policy of POLICIES or a preset."""
    generator = torch.Generator().manual_seed(1)
    layout, block_size = model.pop("layout", "nhd"), model.pop("block_size", 16)
    requests = model.pop("requests", REQUESTS)
    this = shape(**{"layers": 2, "kv_heads": 2, "group": 2, "head_dim": 32, **model})
    if isinstance(name, str):
        terms, fields = POLICIES[name]
        compiled = policy(*terms, pin={"prompt": True, "sinks": 1, "window": 2}, **fields)
    else:
        compiled = Policy.of(name)
    oracle = case(this, requests, layout=layout, block_size=block_size, dtype=dtype, gen=generator)
    stats = statistics(this, generator)
    if name == "learned":
        stats.learned_terms = LEARNED
        stats.learned_weights = torch.randn(len(LEARNED), this.layers, this.kv_heads, generator=generator)
        stats.learned_share = torch.rand(this.layers, this.kv_heads, generator=generator)
    ring = queries_kept(this, oracle, compiled.observes, dtype, generator)
    ours = oracle.on(DEVICE)
    TorchRounds(oracle.caches, oracle.positions, this, compiled, stats, oracle.memory, ring).run(oracle.batch)
    rounds = TritonRounds(
        ours.caches,
        ours.positions,
        this,
        compiled,
        stats,
        memory=ours.memory,
        tuning=tuning,
        workspace_bytes=1 << 20,
        ring=ring and there(ring),
    )
    rounds.run(ours.batch)
    return ours.on("cpu"), oracle


def queries_kept(
    model: ModelShape, case: Case, length: int, dtype: torch.dtype, generator: torch.Generator
) -> QueryRing | None:
    """A ring of random queries somewhat longer than `length`, with one row fewer queries than that; None without."""
    if not length:
        return None
    scales = [0.3 + 0.1 * layer for layer in range(model.layers)]
    dtype = torch.bfloat16 if dtype.itemsize == 1 else dtype
    ring = QueryRing(model, 7, length + 3, 1, dtype, scales, torch.device("cpu"), kernels=True)
    ring.buffer.copy_(2 * torch.randn(ring.buffer.shape, generator=generator))
    count = len(case.plans)
    rows = torch.randperm(7, generator=generator)[:count]
    counts = torch.tensor([max(length - 2, 1), *[length + 3] * (count - 1)])[:count]
    recent = torch.stack([rows, counts], dim=1).int()
    case.batch = dataclasses.replace(case.batch, recent=recent)
    return ring


def there(ring: QueryRing) -> QueryRing:
    """A copy on the device of the kernels."""
    moved = copy.copy(ring)
    moved.buffer, moved.scales = ring.buffer.to(DEVICE), ring.scales.to(DEVICE)
    return moved


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
        remembered = (case.memory[:, :, :, blocks, offsets] for case in (ours, oracle))
        torch.testing.assert_close(*remembered, atol=1e-4, rtol=0)
        for mine, theirs in zip(ours.caches, oracle.caches, strict=True):
            for which in ("k", "v"):
                got, want = (cache.read(which, blocks, offsets).float() for cache in (mine, theirs))
                assert torch.equal(got, want)


@pytest.mark.parametrize("name", POLICIES)
def test_a_round_is_the_oracles(name: str) -> None:
    check(*both(name, SHORT, torch.float32))


@pytest.mark.parametrize("name", SEPARATE_KERNELS)
def test_a_round_over_long_rows_is_the_oracles(name: str) -> None:
    check(*both(name, LONG, torch.float32))


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


SHAPES: list[tuple[torch.dtype, dict[str, Any]]] = [
    (torch.float32, {"group": 1, "head_dim": 64, "block_size": 16}),
    (torch.bfloat16, {"group": 4, "head_dim": 128, "block_size": 32}),
    (torch.float16, {"group": 3, "head_dim": 80, "block_size": 64}),
    (torch.float8_e4m3fn, {"group": 2, "head_dim": 96, "block_size": 128}),
    (torch.bfloat16, {"group": 8, "head_dim": 256, "block_size": 16}),
    (torch.bfloat16, {"group": 2, "head_dim": 64, "rotary_dim": 32, "pairing": "interleaved"}),
]


@pytest.mark.parametrize(("number", "name"), enumerate(sorted(_presets())))
def test_every_preset_over_shapes(number: int, name: str) -> None:
    """Each preset on two of the shapes in turn; pins made small, so that most entries compete."""
    document = preset(name)
    document = msgspec.structs.replace(document, pin=wire.Pin(prompt=True, sinks=2, window=4))
    requests = [
        {"resident": 70, "keep": 44, "previous": 50, "known": 50, "evicted": 9, "prompt_len": 5, "pin": True}
    ]
    for dtype, model in (SHAPES[number % len(SHAPES)], SHAPES[(number + 3) % len(SHAPES)]):
        check(*both(document, SHORT, dtype, layers=1, kv_heads=2, requests=requests, **model))


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
    compiled = policy({"kind": "superseded"}, normalize="none", selection="per_layer_per_head")
    oracle = case(this, REQUESTS, block_size=16, gen=generator)
    ours = oracle.on(DEVICE)
    pairs = torch.tensor([[1, 4], [2, 0]], dtype=torch.int32)
    TorchRounds(oracle.caches, oracle.positions, this, compiled, memory=oracle.memory).copy_blocks(pairs)
    rounds = TritonRounds(
        ours.caches, ours.positions, this, compiled, memory=ours.memory, workspace_bytes=1 << 20
    )
    rounds.copy_blocks(pairs.to(DEVICE))
    ours = ours.on("cpu")
    assert torch.equal(ours.memory, oracle.memory)
    assert torch.equal(ours.positions, oracle.positions)
    for mine, theirs in zip(ours.caches, oracle.caches, strict=True):
        assert torch.equal(mine.k, theirs.k)
        assert torch.equal(mine.v, theirs.v)
