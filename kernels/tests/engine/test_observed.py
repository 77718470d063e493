"""Queries kept through all that a scheduler does: what is observed is what the dense model's queries say.

That they are kept at all, and that a wrong one shows, is in test_policies.
"""

from __future__ import annotations

from typing import Any

import pytest

from .driver import Driver
from .policies import document, plugin
from .rig import EngineFailed, check, prompt, run
from .scenario import Request, Scenario
from .selection import check_selection

pytestmark = pytest.mark.engine

both = pytest.mark.parametrize("runner", ["v1", "v2"])


@both
def test_rows_change_hands(runner: str) -> None:
    """Four requests at a time, aborted and followed by others, in the same four rows of the ring."""
    result = run(
        Scenario(
            "llama",
            runner,
            plugin("llama", "snapkv", interval=4),
            requests=[
                Request("stays", prompt(1, 40), 48),
                *(Request(f"a{i}", prompt(i, 50), 80, arrive=i, abort_after=18 + 4 * i) for i in range(4)),
                *(Request(f"b{i}", prompt(40 + i, 70), 9, arrive=8 + i) for i in range(2)),
            ],
            chunk=48,
            max_num_seqs=4,
        )
    )
    check(result, rounds=10)
    assert check_selection(result) == result.rounds


@pytest.mark.parametrize("name", ["rkv", "h2o"])
@both
def test_prompts_that_were_in_the_prefix_cache(runner: str, name: str) -> None:
    """Of a shared prompt no query is there: the round after one token observes one, not those of another request."""
    shared = prompt(9, 96)
    result = run(
        Scenario(
            "qwen3",
            runner,
            plugin("qwen3", name),
            requests=[
                Request("first", shared + prompt(1, 30), 12),
                Request("one", shared + prompt(2, 1), 20, arrive=12),
                Request("few", shared + prompt(3, 5), 20, arrive=16),
            ],
            prefix_caching=True,
            max_num_seqs=2,
        )
    )
    check(result, rounds=6)
    assert check_selection(result) == result.rounds
    for request, computed in (("one", 97), ("few", 101)):
        assert result[request].cached_tokens == 96
        assert result[request].rounds[0][0].computed == computed


@pytest.mark.parametrize(
    ("runner", "async_scheduling", "name"),
    [("v1", False, "snapkv"), ("v1", True, "snapkv"), ("v2", True, "snapkv"), ("v2", True, "h2o")],
    ids=["v1", "v1-async", "v2-async", "v2-async-h2o"],
)
def test_preempted_and_resumed(runner: str, async_scheduling: bool, name: str) -> None:
    result = run(
        Scenario(
            "llama",
            runner,
            plugin("llama", name, budget=96, interval=16),
            requests=[
                Request("old0", prompt(0, 20), 95),
                Request("old1", prompt(1, 20), 95, arrive=1),
                Request("long", prompt(2, 130), 55, arrive=20),
                Request("late", prompt(3, 50), 40, arrive=45),
            ],
            blocks=10,
            max_model_len=256,
            async_scheduling=async_scheduling,
        )
    )
    check(result)
    assert result.preemptions >= 1
    assert len(result["long"].rounds[1]) >= 2
    assert check_selection(result) == result.rounds


def test_tensor_parallel() -> None:
    """Each rank keeps the queries of its own heads."""
    result = run(
        Scenario(
            "llama",
            "v1",
            plugin("llama", "snapkv"),
            requests=[Request("a", prompt(2, 80), 12)],
            chunk=64,
            tp=2,
        )
    )
    check(result, rounds=2)
    assert check_selection(result) == result.rounds


def change(driver: Driver) -> None:
    """Two policies that observe: one more than the engine keeps, one as many."""
    if driver.step == 20:
        driver.set_policy(document("snapkv"))
        driver.wait_for(lambda: len(driver.control.refusals) == 1)
    if driver.step == 30:
        driver.set_policy_and_wait(document("rkv", budget=48))


def told(driver: Driver) -> list[Any]:
    """What was refused."""
    return driver.control.refusals


@both
def test_a_policy_that_comes_while_requests_run(runner: str) -> None:
    """Eight queries were set aside at start-up: enough for R-KV, too few for SnapKV."""
    result = run(
        Scenario(
            "llama",
            runner,
            control=document("keydiff"),
            environ={"TRIATTN_OBSERVED_QUERIES": "8"},
            requests=[Request("a", prompt(1, 50), 60)],
            on_step=change,
            on_finish=told,
        )
    )
    check(result, rounds=4)
    (refused,) = result.extra
    assert (refused.revision, refused.field_, refused.value) == (2, "terms", "observed")
    assert "restart with this policy, or with TRIATTN_OBSERVED_QUERIES=32" in refused.remedy
    assert [revision for revision, _ in result.acks] == [1, 3]
    assert result["a"].rounds[0][-1].n_keep == 48


def hooked(driver: Driver) -> tuple[bool, bool]:
    """Whether there is a ring, and whether attention was touched."""
    layers = driver.runner.compilation_config.static_forward_context.values()
    return driver.runner.triattn.rounds.ring is not None, any("forward" in vars(x.impl) for x in layers)


@both
def test_nothing_is_kept_where_nothing_observes(runner: str) -> None:
    for name, kept in (("keydiff", False), ("rkv", True)):
        requests = [Request("a", prompt(1, 20), 4)]
        result = run(Scenario("llama", runner, plugin("llama", name), requests, on_finish=hooked))
        assert result.extra == (kept, kept)


def test_start_without_the_memory_for_it_is_refused() -> None:
    """The policy that a control plane sends first must be one that the engine set queries aside for."""
    with pytest.raises(
        EngineFailed, match=r"terms = observed: policy 'snapkv' observes the last 32 .* keeps 0"
    ):
        run(Scenario("llama", "v1", control=document("snapkv")))
