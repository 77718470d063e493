"""Compression under everything a scheduler does: overlap, shared prompts, chunks, budgets, aborts, retraction."""

from __future__ import annotations

import numpy as np
import pytest
from engine.policies import plugin
from engine.scenario import Request
from engine.selection import check_selection

from . import cases
from .rig import check, prompt, run
from .scenario import Scenario

pytestmark = pytest.mark.engine

pages = pytest.mark.parametrize("page", [1, 16])


@pages
@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no-overlap"])
def test_shared_prompts(page: int, overlap: bool) -> None:
    result = run(cases.shared_prompts(page, overlap))
    check(result, rounds=15)
    cases.check_shared_prompts(result)


@pages
def test_without_radix_cache(page: int) -> None:
    result = run(
        Scenario(
            "qwen3",
            plugin("qwen3", "blend"),
            requests=[
                Request("decoding", prompt(1, 20), 70),
                Request("long", prompt(2, 230), 30, arrive=2),
                Request("other", prompt(3, 130), 30, arrive=5),
            ],
            chunk=48,
            page=page,
            radix=False,
        )
    )
    check(result, rounds=10)


def test_prompts_longer_than_the_budget() -> None:
    """In one chunk, in chunks, and just at the limits."""
    lengths = (63, 64, 65, 71, 72, 73, 128, 300)
    result = run(
        Scenario(
            "llama",
            plugin("llama", "random"),
            requests=[Request(f"p{n}", prompt(n, n), 22, arrive=i) for i, n in enumerate(lengths)],
            chunk=192,
        )
    )
    check(result, each=1)
    assert result["p300"].round_count >= 2
    assert result["p300"].rounds[0][0].n_keep == 64


def test_budgets_of_requests() -> None:
    result = run(
        Scenario(
            "llama",
            plugin("llama", "keydiff"),
            requests=[
                Request("policy", prompt(1, 60), 50),
                Request("never", prompt(2, 60), 50, budget=0),
                Request("less", prompt(3, 60), 50, budget=48),
                Request("more", prompt(4, 60), 50, budget=96),
                Request("tiny", prompt(5, 60), 50, budget=10, refused=True),
                Request("negative", prompt(6, 60), 50, budget=-1, refused=True),
                Request("text", prompt(7, 60), 50, budget="many", refused=True),
            ],
        )
    )
    check(result, rounds=8)
    kept = {name: {r.n_keep for r in o.rounds.get(0, [])} for name, o in result.outcomes.items()}
    assert kept["policy"] == {64}
    assert kept["never"] == set()
    assert kept["less"] == {48}
    assert kept["more"] == {96}
    for name in ("tiny", "negative", "text"):
        assert "triattn_budget" in (result[name].error or "")


@pages
def test_aborts(page: int) -> None:
    result = run(cases.aborts(page))
    check(result, rounds=8)
    assert len(result["stays"].tokens) == 60


def test_admission_sees_the_budget() -> None:
    """Requests that would fill the cache several times over run together, and none loses its slots."""
    requests = [Request(f"r{i}", prompt(i, 20), 150) for i in range(8)]
    common = {"requests": requests, "tokens": 640, "max_running": 8}
    bounded = run(Scenario("llama", plugin("llama", "keydiff"), **common))
    check(bounded, rounds=8 * 12)
    free = run(Scenario("llama", plugin("llama", "keydiff", budget=0), **common))
    assert check(free).rounds == 0
    assert bounded.peak_running == 8 > free.peak_running
    assert bounded.preemptions == 0
    # Each holds its budget, the interval and the token of the step under way, at most.
    assert bounded.peak_used_blocks <= 8 * (64 + 8 + 1)
    assert bounded.steps < free.steps


@pages
@pytest.mark.parametrize("radix", [True, False], ids=["radix", "no-radix"])
def test_retracted_and_resumed(page: int, radix: bool) -> None:
    result = run(cases.retracted(page, radix))
    check(result)
    cases.check_retracted(result)


@pytest.mark.parametrize(
    ("preset", "selection", "page"),
    [("triattention", "per_layer_per_head", 1), ("random", "union", 16)],
)
def test_tensor_parallel(preset: str, selection: str, page: int) -> None:
    """Two ranks, each a scheduler of its own that decides the same, scoring and moving its own KV heads."""
    result = run(
        Scenario(
            "llama",
            plugin("llama", preset, selection=selection),
            requests=[Request("a", prompt(1, 20), 70), Request("b", prompt(2, 150), 40, arrive=3)],
            chunk=64,
            tp=2,
            page=page,
        )
    )
    check(result, rounds=6)
    assert check_selection(result) == result.rounds
    if selection == "union":
        for outcome in result.outcomes.values():
            for this in outcome.rounds[0]:
                kept = np.sort(this.kept, axis=-1)
                assert (kept == kept[0, 0]).all()
