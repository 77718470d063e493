"""Compression under everything a scheduler does: chunks, asynchrony, long prompts, budgets, aborts, preemption."""

from __future__ import annotations

import numpy as np
import pytest

from .driver import Driver
from .policies import plugin
from .rig import check, prompt, run
from .scenario import Request, Scenario
from .selection import check_selection

pytestmark = pytest.mark.engine

both = pytest.mark.parametrize("runner", ["v1", "v2"])


@both
def test_chunked_prefill(runner: str) -> None:
    """Chunks smaller than a block, mixed with decoding; rounds at chunk boundaries."""
    result = run(
        Scenario(
            "qwen3",
            runner,
            plugin("qwen3", "blend"),
            requests=[
                Request("decoding", prompt(1, 20), 70),
                Request("long", prompt(2, 230), 20, arrive=2),
                Request("other", prompt(3, 130), 20, arrive=5),
            ],
            chunk=24,
        )
    )
    check(result, rounds=15)
    assert any(r.computed < 230 for r in result["long"].rounds[0])


@both
@pytest.mark.parametrize("prefix_caching", [False, True], ids=["", "prefix-caching"])
def test_async_scheduling(runner: str, prefix_caching: bool) -> None:
    """The next step is scheduled before the last one's tokens are known."""
    shared = prompt(8, 64)
    result = run(
        Scenario(
            "llama",
            runner,
            plugin("llama", "keydiff"),
            requests=[
                Request("a", shared + prompt(1, 10), 50),
                Request("b", shared + prompt(2, 140), 40, arrive=3),
                Request("gone", shared, 60, arrive=5, abort_after=20),
                Request("c", prompt(3, 20), 30, arrive=30),
            ],
            chunk=64,
            async_scheduling=True,
            prefix_caching=prefix_caching,
        )
    )
    check(result, rounds=12)


@both
def test_prompts_longer_than_the_budget(runner: str) -> None:
    """In one chunk, in chunks, and just at the limits."""
    lengths = (63, 64, 65, 71, 72, 73, 128, 300)
    result = run(
        Scenario(
            "llama",
            runner,
            plugin("llama", "random"),
            requests=[Request(f"p{n}", prompt(n, n), 12, arrive=i) for i, n in enumerate(lengths)],
            chunk=192,
        )
    )
    check(result)
    assert result["p63"].round_count <= 1
    assert result["p300"].round_count >= 2


@both
def test_budgets_of_requests(runner: str) -> None:
    result = run(
        Scenario(
            "llama",
            runner,
            plugin("llama", "keydiff"),
            requests=[
                Request("policy", prompt(1, 60), 50),
                Request("never", prompt(2, 60), 50, budget=0),
                Request("less", prompt(3, 60), 50, budget=48),
                Request("more", prompt(4, 60), 50, budget=96),
                Request("tiny", prompt(5, 60), 50, budget=20, refused=True),
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


@both
def test_aborts(runner: str) -> None:
    """Waiting, in prefill, before, between and right at rounds."""
    result = run(
        Scenario(
            "llama",
            runner,
            plugin("llama", "random", interval=4),
            requests=[
                Request("stays", prompt(1, 40), 60),
                *(Request(f"a{i}", prompt(i, 50), 80, arrive=i, abort_after=10 + i) for i in range(8)),
                Request("in prefill", prompt(30, 200), 10, arrive=4, abort_at=6),
                Request("waiting", prompt(31, 200), 10, arrive=4, abort_at=5),
            ],
            chunk=48,
            max_num_seqs=6,
        )
    )
    check(result, rounds=8)
    assert len(result["stays"].tokens) == 60


@pytest.mark.parametrize(
    ("runner", "async_scheduling"),
    [("v1", False), ("v1", True), ("v2", True)],
    ids=["v1", "v1-async", "v2-async"],
)
def test_preempted_and_resumed(runner: str, async_scheduling: bool) -> None:
    """More budget than cache: a compressed request loses its blocks, is computed again and evicted anew."""
    result = run(
        Scenario(
            "llama",
            runner,
            plugin("llama", "random", budget=96, interval=16),
            requests=[
                Request("old0", prompt(0, 20), 95),
                Request("old1", prompt(1, 20), 95, arrive=1),
                Request("long", prompt(2, 130), 55, arrive=20),
                Request("late", prompt(3, 50), 40, arrive=45),
            ],
            blocks=10,
            max_model_len=256,
            async_scheduling=async_scheduling,
        )
    )
    check(result)
    assert result.preemptions >= 1
    before, after = (result["long"].rounds[incarnation] for incarnation in (0, 1))
    assert len(before) >= 2
    assert len(after) >= 2
    assert set(result["long"].incarnation) == {0, 1}


def reset(driver: Driver) -> None:
    """Forget every cached block; requests that run lose theirs and resume in the very next step."""
    if driver.step in (15, 16, 33):
        assert driver.core.reset_prefix_cache(reset_running_requests=True)


@pytest.mark.parametrize(
    ("runner", "async_scheduling"),
    [("v1", False), ("v1", True), ("v2", True)],
    ids=["v1", "v1-async", "v2-async"],
)
def test_caches_reset(runner: str, async_scheduling: bool) -> None:
    """What happens after an update of the weights: preempted and resumed without a step in between."""
    result = run(
        Scenario(
            "llama",
            runner,
            plugin("llama", "random"),
            requests=[
                Request("long", prompt(1, 100), 45),
                Request("short", prompt(2, 55), 45, arrive=2),
            ],
            prefix_caching=True,
            async_scheduling=async_scheduling,
            on_step=reset,
        )
    )
    check(result, rounds=8)
    assert result["long"].preemptions == 3


def test_preempted_by_priority_with_prefix_cache() -> None:
    """Important requests push compressed ones out; what those cached before is hit when they come back."""
    shared = prompt(9, 64)
    low = [Request(f"low{i}", shared + prompt(i, 30), 60, arrive=i, priority=5) for i in range(2)]
    high = [Request(f"high{i}", prompt(20 + i, 60), 60, arrive=30 + 3 * i) for i in range(2)]
    result = run(
        Scenario(
            "llama",
            "v1",
            plugin("llama", "keydiff", budget=96),
            requests=low + high,
            blocks=11,
            max_model_len=288,
            priorities=True,
            prefix_caching=True,
        )
    )
    check(result, rounds=12)
    assert result.preemptions >= 1
    assert not any(result[r.id].preemptions for r in high)
    assert any(len(o.rounds) >= 2 for o in result.outcomes.values()), "preempted before it was compressed"


@pytest.mark.parametrize(
    ("runner", "preset", "selection"),
    [
        # Statistics are sliced by rank; a choice that all heads share needs the same numbers on both.
        ("v1", "triattention", "per_layer_per_head"),
        ("v2", "random", "union"),
    ],
    ids=["v1", "v2"],
)
def test_tensor_parallel(runner: str, preset: str, selection: str) -> None:
    """Two ranks, each scoring and moving its own KV heads."""
    result = run(
        Scenario(
            "llama",
            runner,
            plugin("llama", preset, selection=selection),
            requests=[Request("a", prompt(1, 20), 70), Request("b", prompt(2, 150), 40, arrive=3)],
            chunk=64,
            tp=2,
            prefix_caching=True,
        )
    )
    check(result, rounds=6)
    assert check_selection(result) == result.rounds
    if selection == "union":
        for outcome in result.outcomes.values():
            for this in outcome.rounds[0]:
                kept = np.sort(this.kept, axis=-1)
                assert (kept == kept[0, 0]).all()
