"""Prefix caching stays on: a shared prompt is shared, survives the compaction of those who share it, and
is hit by later requests. That no cached block changes is checked by the rig at every eighth step."""

from __future__ import annotations

import pytest

from .driver import Driver
from .policies import plugin
from .rig import check, prompt, run
from .scenario import Request, Scenario

pytestmark = pytest.mark.engine

SHARED = prompt(9, 96)
"""Three blocks."""


def requests(more: int) -> list[Request]:
    """Two that share the prompt while they run, one that shares nothing, two that come later."""
    return [
        Request("first", SHARED + prompt(1, 10), 30 + more),
        Request("second", SHARED + prompt(2, 20), 20 + more, arrive=4),
        Request("alone", prompt(3, 50), 40, arrive=6),
        Request("same", SHARED + prompt(1, 10), 20 + more, arrive=15),
        Request("late", SHARED + prompt(4, 20), 20 + more, arrive=32),
    ]


@pytest.mark.parametrize("runner", ["v1", "v2"])
@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "competing"])
def test_shared_prompt(runner: str, pinned: bool) -> None:
    # A budget of 160 holds the prompts, which stay where they are; with 64 they compete, and their blocks, shared,
    # are copied before they are compacted.
    policy = plugin("llama", "keydiff", budget=160 if pinned else 64, interval=4 if pinned else 8)
    result = run(
        Scenario("llama", runner, policy, requests=requests(45 if pinned else 0), prefix_caching=True)
    )
    check(result, rounds=10)
    for name in ("second", "same", "late"):
        assert result[name].cached_tokens >= 96, name


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_prompt_longer_than_budget_is_shared(runner: str) -> None:
    """Only what was computed before the first eviction is ever offered to others."""
    long = prompt(5, 250)
    result = run(
        Scenario(
            "llama",
            runner,
            plugin("llama", "random", interval=16),
            requests=[
                Request("first", long, 20),
                Request("second", long, 20, arrive=3),
                Request("third", long + prompt(6, 30), 20, arrive=40),
            ],
            chunk=64,
            prefix_caching=True,
        )
    )
    check(result, rounds=9, each=3)
    assert result["third"].cached_tokens >= 64


def rounds_put_off(driver: Driver) -> int:
    """Rounds that waited for a free block."""
    return driver.scheduler.triattn.totals.skipped


def test_no_room_for_copies() -> None:
    """Shared blocks and no free block to copy them to: rounds wait, nothing is overwritten, all come through."""
    result = run(
        Scenario(
            "llama",
            "v1",
            plugin("llama", "random"),
            requests=[Request(f"r{i}", SHARED + prompt(i, 4), 40) for i in range(6)],
            prefix_caching=True,
            blocks=9,
            max_model_len=224,
            on_finish=rounds_put_off,
        )
    )
    check(result, rounds=5)
    assert result.extra >= 50
