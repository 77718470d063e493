"""A seeded random life: arrivals, aborts, budgets, retractions, policies, shared prompts."""

from __future__ import annotations

import random

from engine.policies import document
from engine.scenario import Request

from .driver import Driver
from .rig import prompt

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
    """Draws what happens before each step. One object lives through a run.

    most: unfinished requests; pages: steps between SGLang's checks of every page (0: the scenario says).
    """

    def __init__(self, seed: int, steps: int, most: int = 16, pages: int = 0) -> None:
        self.random = random.Random(seed)
        self.steps = steps
        self.most = most
        self.pages = pages
        self.count = 0
        self.seen = -1

    def __call__(self, driver: Driver) -> bool:
        draw = self.random
        driver.scheduler.new_token_ratio_tracker.current = 0.0
        if driver.step >= self.steps:
            return False
        if driver.step == self.seen and driver.unfinished:
            return True
        self.seen = driver.step
        if self.pages and driver.step % self.pages == 0:
            driver.scheduler.invariant_checker._check_kv_page_invariants()
        while draw.random() < 0.2 and len(driver.unfinished) < self.most:
            self.count += 1
            driver.add(self.request(driver.step))
        if draw.random() < 0.02 and driver.unfinished:
            driver.abort(draw.choice(driver.unfinished))
        if draw.random() < 0.008:
            driver.set_policy(draw.choice(POLICIES))
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
        )
