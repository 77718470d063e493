"""Without rounds nothing differs: tokens and log-probs of SGLang with triattn are those of SGLang without."""

from __future__ import annotations

import numpy as np
import pytest
from engine.policies import plugin
from engine.scenario import Request, Run

from .rig import check, prompt, run
from .scenario import Scenario

pytestmark = pytest.mark.engine


def serve(**changes: object) -> Run:
    """Greedy requests in chunks, some of them sharing a prompt."""
    shared = prompt(4, 40)
    return run(
        Scenario(
            "qwen3",
            requests=[
                Request("a", prompt(1, 70), 40, greedy=True),
                Request("b", shared + prompt(2, 20), 60, arrive=5, greedy=True),
                Request("c", shared + prompt(3, 300), 20, arrive=9, greedy=True),
            ],
            chunk=64,
            **changes,
        )
    )


def test_engine_equals_oracle() -> None:
    """The rig itself, on an engine without triattn: what it calls equal is equal."""
    assert check(serve(), tolerance=2e-5).tokens == 120


@pytest.mark.parametrize("changes", [{"budget": 0}, {"budget": 2048}], ids=["off", "never-due"])
def test_nothing_evicted_is_unmodified(changes: dict) -> None:
    without, loaded = serve(), serve(plugin=plugin("qwen3", "keydiff", **changes))
    assert loaded.rounds == 0
    assert without.steps == loaded.steps
    for name, outcome in without.outcomes.items():
        assert outcome.tokens == loaded[name].tokens
        assert np.array_equal(outcome.log_probs, loaded[name].log_probs)
