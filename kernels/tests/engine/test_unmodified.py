"""The rig itself, on engines without triattn: what it calls equal is equal."""

from __future__ import annotations

import pytest

from .rig import check, prompt, run
from .scenario import Request, Scenario

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("runner", ["v1", "v2"])
@pytest.mark.parametrize("model", ["llama", "qwen3"])
def test_engine_equals_oracle(runner: str, model: str) -> None:
    scenario = Scenario(
        model,
        runner,
        requests=[
            Request("a", prompt(1, 70), 40, greedy=False),
            Request("b", prompt(2, 20), 60, arrive=5),
            Request("c", prompt(3, 300), 20, arrive=9),
        ],
        chunk=64,
        prefix_caching=True,
    )
    report = check(run(scenario), tolerance=2e-5)
    assert report.tokens == 120
