"""Nothing evicted: not a bit differs from the engine without triattn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from .policies import plugin
from .rig import check, prompt, run
from .scenario import Request, Scenario

pytestmark = pytest.mark.engine

SHARED = prompt(9, 64)

SCENARIO = Scenario(
    requests=[
        Request("a", SHARED + prompt(1, 30), 30),
        Request("b", prompt(2, 20), 40, arrive=2),
        Request("c", SHARED + prompt(3, 90), 20, arrive=8),
        Request("d", SHARED, 10, arrive=12, abort_after=5),
    ],
    chunk=48,
    prefix_caching=True,
)


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_bit_identical(runner: str) -> None:
    plain = replace(SCENARIO, runner=runner)
    reference = run(plain)
    check(reference, tolerance=2e-5)
    ways: dict[str, dict[str, Any]] = {
        "loaded, not turned on": {"off": True},
        "budget never reached": {"plugin": plugin("llama", "triattention", budget=1024)},
    }
    if runner == "v1":
        asked = [replace(r, budget=0) for r in SCENARIO.requests]
        ways["budget 0"] = {"plugin": plugin("llama", "random", budget=0)}
        ways["budget 0 asked for"] = {"plugin": plugin("llama"), "requests": asked}
    for name, change in ways.items():
        result = run(replace(plain, **change))
        assert result.rounds == 0, name
        assert result.free_blocks == result.total_blocks, name
        assert result.steps == reference.steps, name
        for outcome in reference.outcomes.values():
            other = result[outcome.request.id]
            assert other.tokens == outcome.tokens, name
            assert np.array_equal(other.log_probs, outcome.log_probs), name
