"""A cache too small for full KV: many requests at once, several times the cache in total, nobody preempted."""

from __future__ import annotations

import pytest

from .policies import plugin
from .rig import EngineFailed, check, prompt, run
from .scenario import Request, Scenario

pytestmark = pytest.mark.engine


def crowd(tokens: int, prompt_len: int = 24) -> list[Request]:
    """Sixteen requests that all want to run at once."""
    return [Request(f"r{i}", prompt(i, prompt_len), tokens) for i in range(16)]


@pytest.mark.parametrize(
    ("runner", "prompt_len", "tokens"), [("v1", 24, 280), ("v2", 90, 18)], ids=["v1", "v2"]
)
def test_sixteen_at_once(runner: str, prompt_len: int, tokens: int) -> None:
    # Budget 64 + interval 4 is at most 3 blocks of 32 a request (one round frees the third): 48 and the null block.
    scenario = Scenario(
        "soak",
        runner,
        plugin("soak", "keydiff", interval=4),
        requests=crowd(tokens, prompt_len),
        blocks=49,
        max_model_len=512,
    )
    result = run(scenario)
    check(result, each=4)
    full_blocks = sum(-(-(len(r.prompt) + r.max_tokens) // 32) for r in scenario.requests)
    assert full_blocks >= (3 * 48 if runner == "v1" else 64)
    assert result.preemptions == 0
    assert result.peak_running == 16
    assert result.steps <= tokens + 4


def test_without_compression_it_thrashes() -> None:
    """The same crowd on the same cache, budget 0: the zero above means something."""
    result = run(
        Scenario("soak", "v1", plugin("soak", budget=0), requests=crowd(280), blocks=49, max_model_len=512)
    )
    check(result)
    assert result.preemptions >= 10


@pytest.mark.parametrize("runner", ["v1", "v2"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with others"])
def test_longer_than_the_cache(runner: str, alone: bool) -> None:
    """max_model_len beyond the cache is admitted when the budget fits, and such requests run to their end."""
    others = [Request("other prompt", prompt(2, 400), 20, arrive=2)]
    if runner == "v1":
        others.append(Request("generation", prompt(3, 30), 450, arrive=4))
    result = run(
        Scenario(
            "soak",
            runner,
            plugin("soak", "random"),
            requests=[Request("prompt", prompt(1, 700), 20), *([] if alone else others)],
            blocks=13,
            max_model_len=1024,
            max_steps=2000,
        )
    )
    check(result, each=2)


def test_longer_than_the_cache_without_budget_is_refused() -> None:
    """What an engine without triattn refuses is still refused when nothing would be compressed."""
    for policy in (plugin("soak", budget=0), plugin("soak", budget=380), plugin("soak", countPrompt=False)):
        with pytest.raises(EngineFailed, match=r"max seq len|budget|countPrompt"):
            run(Scenario("soak", "v1", policy, blocks=13, max_model_len=1024))
