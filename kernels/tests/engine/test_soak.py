"""A seeded random life: arrivals, aborts, priorities, budgets, preemptions, policies, rules, shared prompts.

After every step the pool, every table and every cached block are checked; at the end every log-prob of
every request is compared with the oracle's.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from triattn import wire

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
RULES: list[dict[str, Any]] = [
    {},
    {"rules": [{"name": "a", "tags": ["a"], "budget": 72}, {"name": "late", "minPriority": 2, "budget": 0}]},
    {
        "rules": [{"name": "ab", "tags": ["a", "b"], "policy": 1}, {"name": "b", "tags": ["b"], "policy": 0}],
        "policies": [POLICIES[2], POLICIES[1]],
    },
]
TAGS = (None, None, "a", "b", "a,b")


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
            driver.set_policy_and_wait(draw.choice(POLICIES), **draw.choice(RULES))
        if draw.random() < 0.01 and driver.unfinished:
            driver.control.post(
                wire.Watch(
                    seconds=draw.choice((0, 1, 60)), requests=True, kept=draw.choice(driver.unfinished)
                )
            )
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
            tags=draw.choice(TAGS),
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
