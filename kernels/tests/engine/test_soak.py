"""A seeded random life: arrivals, aborts, priorities, budgets, preemptions, policies, shared prompts.

After every step the pool, every table and every cached block are checked; at the end every log-prob of
every request is compared with the oracle's.
"""

from __future__ import annotations

import random

import pytest

from .driver import Driver
from .policies import document
from .rig import check, prompt, run
from .scenario import Request, Scenario

pytestmark = pytest.mark.engine

PREFIXES = [prompt(100 + i, length) for i, length in enumerate((32, 70, 130, 200))]
BUDGETS = (None, None, None, 0, 48, 64, 100)
POLICIES = [
    document("random", budget=64),
    document("keydiff", budget=80, interval=20),
    document("streaming", budget=48, interval=4),
    document("random", budget=96, selection="union", pin={"prompt": False}),
    document("keydiff", budget=64, interval=16, pin={"window": 0, "sinks": 0}),
    document("random", budget=0),
]


class Life:
    """Draws what happens before each step. One object lives through a run."""

    def __init__(self, seed: int, steps: int, rate: float) -> None:
        self.random = random.Random(seed)
        self.steps = steps
        self.rate = rate
        self.count = 0

    def __call__(self, driver: Driver) -> bool:
        draw = self.random
        if driver.step >= self.steps:
            return False
        while draw.random() < self.rate and len(driver.unfinished) < 24:
            self.count += 1
            driver.add(self.request(driver.step))
        if draw.random() < 0.02 and driver.unfinished:
            driver.abort(draw.choice(driver.unfinished))
        if draw.random() < 0.004:
            driver.set_policy_and_wait(draw.choice(POLICIES))
        if draw.random() < 0.002:
            driver.core.reset_prefix_cache(reset_running_requests=True)
        return True

    def request(self, step: int) -> Request:
        """A request with a prompt that may share its beginning with others'."""
        draw = self.random
        tokens = list(draw.choice(PREFIXES)) if draw.random() < 0.6 else []
        tokens += prompt(self.count, draw.choice((1, 5, 17, 40, 90)))
        return Request(
            f"s{self.count}",
            tokens,
            draw.choice((1, 2, 10, 30, 60, 120)),
            arrive=step,
            budget=draw.choice(BUDGETS),
            priority=draw.choice((0, 0, 1, 2)),
        )


@pytest.mark.parametrize(
    ("runner", "steps", "seed", "asynchronous"),
    [("v1", 1500, 1, False), ("v1", 1500, 2, True), ("v2", 100, 3, True)],
    ids=["v1", "v1-async", "v2-async"],
)
def test_soak(runner: str, steps: int, seed: int, asynchronous: bool) -> None:
    result = run(
        Scenario(
            "soak",
            runner,
            control=POLICIES[0],
            on_step=Life(seed, steps, rate=0.2),
            blocks=20,
            max_model_len=384,
            chunk=96,
            max_num_seqs=12,
            prefix_caching=True,
            async_scheduling=asynchronous,
            priorities=True,
        ),
        timeout=600,
    )
    assert result.steps >= steps
    report = check(result, rounds=steps // 10)
    assert report.tokens >= steps
    assert result.preemptions >= steps // 150
