"""Every policy family over at least five rounds: log-probs against the oracle, choices against the policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine.oracle import Round
from engine.policies import plugin
from engine.scenario import Request
from engine.selection import check_selection

from .rig import check, oracle_log_probs, prompt, run
from .scenario import Scenario

pytestmark = pytest.mark.engine

# name: (model, preset, changes to it). The first five are the presets.
POLICIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "triattention": ("llama", "triattention", {}),
    "random": ("qwen3", "random", {}),
    "streaming": ("llama", "streaming", {}),
    "keydiff": ("qwen3", "keydiff", {}),
    "blend": ("mha", "blend", {}),
    "norm-alone": ("yarn", "triattention", {"terms": [{"kind": "norm", "residual": False}]}),
    "union": ("llama", "triattention", {"selection": "union", "normalize": "each"}),
    "per-head": ("qwen3", "keydiff", {"selection": "per_head", "layerAggregation": "max"}),
    "generated-only": ("llama", "keydiff", {"countPrompt": False, "budget": 44}),
    "nothing-pinned": ("llama", "keydiff", {"pin": {"prompt": False, "sinks": 0, "window": 0}}),
}
PAGES = {"keydiff": 16, "union": 16, "nothing-pinned": 16}


def scenario(name: str, **changes: Any) -> Scenario:
    """Three requests: a pinned prompt, one that competes, one longer than the budget and prefilled in chunks."""
    model, preset, policy = POLICIES[name]
    # A budget of generated tokens only fires when so many are generated.
    more = 0 if policy.get("countPrompt", True) else 44
    return Scenario(
        model,
        plugin(model, preset, interval=5, **policy),
        requests=[
            Request("pinned", prompt(1, 24), 70 + more // 4),
            Request("loose", prompt(2, 60), 38 + more, arrive=3),
            Request("long", prompt(3, 200), 34 + more, arrive=8),
        ],
        chunk=64,
        **{"page": PAGES.get(name, 1), **changes},
    )


@pytest.mark.parametrize("name", POLICIES)
def test_policy(name: str) -> None:
    result = run(scenario(name))
    check(result, rounds=15, each=5)
    assert check_selection(result) == result.rounds


def test_interpreted_kernels() -> None:
    """SGLang's Triton attention and triattn's own kernels, both interpreted, on one table."""
    result = run(
        Scenario(
            "mha",
            plugin("mha", "blend", interval=4, budget=32),
            requests=[Request("pinned", prompt(1, 16), 41), Request("loose", prompt(2, 40), 22, arrive=3)],
            interpreted=True,
            page=16,
        )
    )
    check(result, rounds=10, each=4)
    assert check_selection(result) == result.rounds


def test_an_eviction_ignored_shows() -> None:
    """The comparison bites: an oracle that forgets a single eviction is off by far."""
    result = run(scenario("random"))
    check(result, each=5)
    outcome = result["pinned"]
    rounds = outcome.rounds[0]
    first = rounds[0]
    evicted = sorted(set(range(first.computed)) - set(first.kept[0, 0].tolist()))
    worst = []
    for position in evicted:
        # Both lists keep the position in layer 0, head 0 for good; only the token differs that it replaces.
        lax = [Round(r.computed, r.evicted_total, r.kept.copy()) for r in rounds]
        for this in lax:
            this.kept[0, 0, np.argmin(this.kept[0, 0])] = position
        wrong = oracle_log_probs(result, outcome, {0: lax})
        worst.append(np.abs(outcome.log_probs - wrong).max())
    assert min(worst) > 0.01
    assert max(worst) > 0.1
    nothing = oracle_log_probs(result, outcome, {0: []})
    assert np.abs(outcome.log_probs - nothing).max() > 1
