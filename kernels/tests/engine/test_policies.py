"""Every policy over at least five rounds: log-probs against the oracle, choices against the policy in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .oracle import Round
from .policies import plugin
from .rig import check, oracle_log_probs, prompt, run
from .scenario import Request, Run, Scenario
from .selection import agreement, check_selection

pytestmark = pytest.mark.engine

TRIG: dict[str, Any] = {"kind": "trig"}
NORM: dict[str, Any] = {"kind": "norm"}

# name: (model, preset, changes to it). The presets come first.
POLICIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "triattention": ("llama", "triattention", {}),
    "random": ("qwen3", "random", {}),
    "streaming": ("llama", "streaming", {}),
    "keydiff": ("qwen3", "keydiff", {}),
    "blend": ("mha", "blend", {}),
    "auto": ("qwen3", "auto", {}),
    "auto-fixed": ("llama", "auto", {"learned": False}),
    "auto-bare": ("mha", "auto", {"bare": True}),
    "expected-attention": ("yarn", "expected-attention", {}),
    "knorm": ("llama", "knorm", {}),
    "leverage": ("qwen3", "leverage", {}),
    "snapkv": ("llama", "snapkv", {}),
    "rkv": ("qwen3", "rkv", {}),
    "h2o": ("llama", "h2o", {}),
    "observed": (
        "yarn",
        "snapkv",
        {"terms": [{"kind": "observed", "window": 5, "reach": 0, "group": "max"}, TRIG], "normalize": "each"},
    ),
    "superseded": ("yarn", "superseded", {}),
    "vase": ("llama", "vase", {"reserve": {"share": 0.3, "terms": [{"kind": "vrange"}]}}),
    "triattention-redundancy": ("qwen3", "triattention-redundancy", {}),
    "segments": ("llama", "segments", {}),
    "reserve": (
        "qwen3",
        "blend",
        {"reserve": {"share": 0.5, "terms": [{"kind": "superseded"}, {"kind": "keydiff"}]}},
    ),
    "trig-max": ("yarn", "triattention", {"terms": [{**TRIG, "offsets": "max", "maxOffset": 4096}, NORM]}),
    "trig-alone": ("yarn", "triattention", {"terms": [TRIG], "groupAggregation": "mean"}),
    "norm-alone": ("qwen3", "triattention", {"terms": [{**NORM, "residual": False}]}),
    "per-layer-per-head": ("qwen3", "triattention", {"selection": "per_layer_per_head"}),
    "union": ("llama", "triattention", {"selection": "union", "normalize": "each"}),
    "layer-max": ("llama", "keydiff", {"selection": "per_head", "layerAggregation": "max"}),
    "random-union": ("llama", "random", {"selection": "union", "seed": 7}),
    "generated-only": ("llama", "keydiff", {"countPrompt": False, "budget": 44}),
    "experts": ("moe", "blend", {}),
    "nothing-pinned": ("llama", "keydiff", {"pin": {"prompt": False, "sinks": 0, "window": 0}}),
}
WITH_KERNELS = [
    *list(POLICIES)[:6],
    "expected-attention",
    "leverage",
    "snapkv",
    "rkv",
    "h2o",
    "superseded",
    "vase",
    "triattention-redundancy",
    "segments",
    "reserve",
]
"""Run on the V2 runner with interpreted kernels, too: between them they use every one."""


def scenario(name: str, runner: str, **changes: Any) -> Scenario:
    """Three requests: a pinned prompt, one that competes, one longer than the budget and prefilled in chunks."""
    model, preset, policy = POLICIES[name]
    # A budget of generated tokens only fires when so many are generated.
    more = 0 if policy.get("countPrompt", True) else 44
    return Scenario(
        model,
        runner,
        plugin=plugin(model, preset, interval=5, **policy),
        requests=[
            Request("pinned", prompt(1, 24), 68 + more // 4),
            Request("loose", prompt(2, 60), 36 + more, arrive=3),
            Request("long", prompt(3, 200), 30 + more, arrive=8),
        ],
        chunk=64,
        **changes,
    )


@pytest.mark.parametrize(
    ("name", "runner"), [*((n, "v1") for n in POLICIES), *((n, "v2") for n in WITH_KERNELS)]
)
def test_policy(name: str, runner: str) -> None:
    # With the V2 runner, as on a GPU: scores, selection and moves by the Triton kernels, here interpreted.
    result = run(scenario(name, runner, environ={"TRIATTN_ROUNDS": "triton" if runner == "v2" else "torch"}))
    check(result, rounds=15, each=5)
    assert check_selection(result) == result.rounds
    if runner == "v1" and name in ("snapkv", "rkv", "h2o"):
        # With the queries of one position earlier other tokens would have stayed.
        with pytest.raises(AssertionError, match="evicted an entry"):
            check_selection(result, late=1)
        assert agreement(result) > 0.99
        # Half of what H2O keeps are the most recent tokens, whatever its queries.
        assert agreement(result, late=8) < (0.99 if name == "h2o" else 0.95)
    if runner == "v1" and name == "h2o":
        with pytest.raises(AssertionError, match="evicted an entry"):
            check_selection(result, forget=True)
    check_shape(result, POLICIES[name][2].get("selection"))


def check_shape(result: Run, selection: str | None) -> None:
    """A choice that layers or heads share is the same in them."""
    if selection not in ("union", "per_head"):
        return
    for outcome in result.outcomes.values():
        for this in outcome.rounds[0]:
            kept = np.sort(this.kept, axis=-1)
            assert (kept == kept[:1]).all()
            assert selection == "per_head" or (kept == kept[:, :1]).all()


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_an_eviction_ignored_shows(runner: str) -> None:
    """The comparison bites: an oracle that forgets a single eviction is off by far."""
    result = run(scenario("random", runner))
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
