"""What the vLLM hooks know of the ring of queries: rows, places, sizes, and layers that it does not suit. No engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triattn.engines.vllm.query_ring import RingRows, check_layer, hook, places, ring_bytes
from triattn.engines.vllm.startup import without_queries
from triattn.errors import ConfigError
from triattn.ops.queries import place_oracle


@given(
    length=st.integers(1, 9),
    requests=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 14)), max_size=5),
    data=st.data(),
)
def test_places_are_those_of_the_device(
    length: int, requests: list[tuple[int, int]], data: st.DataObject
) -> None:
    rows = data.draw(st.permutations(range(5)))[: len(requests)]
    computed, scheduled = (np.array([r[i] for r in requests], np.int64) for i in (0, 1))
    positions = torch.cat([torch.arange(n) + c for c, n in requests] or [torch.arange(0)])
    start = torch.tensor([0, *np.cumsum(scheduled).tolist()])
    want = torch.empty(len(positions), dtype=torch.int32)
    place_oracle(want, positions, start, torch.tensor(rows), length)
    got = places(np.array(rows, np.int64), computed, scheduled, length)
    assert got.tolist() == want.tolist()


def test_rows_go_back_with_the_blocks() -> None:
    rows = RingRows(2)
    rows.begin("a", 0)
    rows.begin("b", 64)
    assert rows.row("a") != rows.row("b")
    assert rows.recent("b", 65, 8) == (rows.row("b"), 1)
    assert rows.recent("b", 100, 8) == (rows.row("b"), 8)
    with pytest.raises(AssertionError, match="follows a step"):
        rows.recent("b", 64, 8)
    rows.end("a")
    rows.end("never there")
    rows.begin("c", 0)
    # Preempted and resumed without a step in between: its row, from another position on.
    rows.begin("b", 96)
    assert rows.recent("b", 100, 8) == (rows.row("b"), 4)
    assert {rows.row("b"), rows.row("c")} == {0, 1}


def layer(**impl: Any) -> SimpleNamespace:
    return SimpleNamespace(impl=SimpleNamespace(**{"scale": 0.125, "logits_soft_cap": 0.0, **impl}))


@pytest.mark.parametrize(
    ("impl", "field"),
    [
        ({"alibi_slopes": [1.0]}, "alibi_slopes"),
        ({"sinks": torch.zeros(2)}, "sinks"),
        ({"logits_soft_cap": 50.0}, "logits_soft_cap"),
        ({"scale": None}, "SimpleNamespace.scale"),
    ],
)
def test_attention_that_the_queries_do_not_tell_is_refused(impl: dict[str, Any], field: str) -> None:
    check_layer("layer", layer())
    with pytest.raises(ConfigError, match="use one without") as caught:
        check_layer("layer", layer(**impl))
    assert caught.value.field == field


def test_quantised_queries_are_refused() -> None:
    quantised = layer()
    quantised.query_quant, quantised.kv_cache_dtype = object(), "fp8"
    with pytest.raises(ConfigError, match=r"kv_cache_dtype = 'fp8': .* gets quantised queries"):
        check_layer("layer", quantised)


def test_a_layer_keeps_its_queries_before_it_runs() -> None:
    calls: list[Any] = []
    ring = SimpleNamespace(write=lambda index, query: calls.append((index, query)))
    impl = SimpleNamespace(
        forward=lambda layer, query, key, *, output: calls.append((layer, query, key, output))
    )
    hook(ring, 3, impl)
    impl.forward("layer", "query", "key", output="out")
    assert calls == [(3, "query"), ("layer", "query", "key", "out")]


def test_memory_is_taken_from_the_caches() -> None:
    model = SimpleNamespace(
        get_num_layers=lambda _: 36,
        get_num_attention_heads=lambda _: 32,
        get_head_size=lambda: 128,
        dtype=torch.bfloat16,
    )
    config = SimpleNamespace(
        model_config=model,
        parallel_config=None,
        scheduler_config=SimpleNamespace(max_num_seqs=384),
    )
    assert ring_bytes(config, 32) == 384 * 9_437_184
    assert without_queries(8 << 30, config, 32) == (8 << 30) - 384 * 9_437_184
    assert without_queries(8 << 30, config, 0) == 8 << 30
    with pytest.raises(ConfigError, match=r"max_num_seqs = 384: .* take 3\.4 GiB of the 3\.0 that are free"):
        without_queries(3 << 30, config, 32)
