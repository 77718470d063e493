"""A seeded random life: arrivals, aborts, budgets, retractions, policies, shared prompts.

After every step SGLang checks its own pool (strictly); at the end every log-prob of every request is compared
with the oracle's.
"""

from __future__ import annotations

import pytest

from .life import POLICIES, Life
from .rig import check, run
from .scenario import Scenario

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("page", "seed", "overlap"), [(1, 1, True), (16, 2, True), (1, 3, False)], ids=["", "pages", "no-overlap"]
)
def test_soak(page: int, seed: int, overlap: bool) -> None:
    steps = 800
    result = run(
        Scenario(
            "soak",
            control=POLICIES[0],
            on_step=Life(seed, steps),
            tokens=640,
            max_model_len=512,
            chunk=96,
            max_running=12,
            page=page,
            overlap=overlap,
        ),
        timeout=600,
    )
    assert result.steps >= steps
    report = check(result, rounds=steps // 10)
    assert report.tokens >= steps
    assert result.preemptions >= 1
