"""The integers of a round, by property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triattn.errors import ConfigError
from triattn.plan import Budgeting, cdiv

budgetings = st.builds(
    lambda budget_over, interval, sinks, window, prompt, count, block: Budgeting(
        sinks + window + block + budget_over, interval, sinks, window, prompt, count, block
    ),
    st.integers(0, 4096),
    st.integers(1, 512),
    st.integers(0, 64),
    st.integers(0, 512),
    st.booleans(),
    st.booleans(),
    st.sampled_from([16, 32, 64, 128]),
)


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_cdiv_is_the_ceiling(a: int, b: int) -> None:
    assert (cdiv(a, b) - 1) * b < a <= cdiv(a, b) * b or a == 0 == cdiv(a, b)


@given(budgetings, st.integers(1, 10_000), st.integers(1, 20_000), st.integers(1, 4096))
def test_a_request_never_outgrows_its_peak(b: Budgeting, prompt: int, generated: int, chunk: int) -> None:
    """Simulate prefill in chunks, then decode, with a round at every trigger."""
    peak = b.peak(prompt, chunk)
    assert peak is not None
    keep, trigger = b.target(prompt), b.trigger(prompt)
    computed = evicted = most = 0
    total = prompt + min(generated, 600)
    while computed < total:
        if computed - evicted >= trigger:
            evicted = computed - keep
        computed += min(chunk, prompt - computed) if computed < prompt else 1
        most = max(most, computed - evicted)
    assert most <= peak


@given(budgetings, st.integers(1, 10_000))
def test_a_round_keeps_every_pinned_token(b: Budgeting, prompt: int) -> None:
    keep = b.target(prompt)
    pinned = max(b.sinks, prompt) if b.pins_prompt(prompt, keep) else b.sinks
    assert pinned + b.window + b.block_size <= keep
    assert b.trigger(prompt) > keep


@given(budgetings, st.integers(1, 10_000), st.integers(0, 1_000_000))
def test_a_request_may_ask_for_any_budget_that_works(b: Budgeting, prompt: int, budget: int) -> None:
    if 0 < budget < b.minimum:
        with pytest.raises(ConfigError, match=f"at least {b.minimum}"):
            b.check("triattn_budget", budget)
        return
    b.check("triattn_budget", budget)
    assert b.target(prompt, budget) == (0 if budget == 0 else budget if b.count_prompt else budget + prompt)
    assert (b.trigger(prompt, budget) == 0) == (budget == 0)


def test_a_prompt_too_long_for_the_budget_is_not_pinned() -> None:
    b = Budgeting(budget=256, interval=32, sinks=4, window=32, prompt=True, count_prompt=True, block_size=32)
    assert b.pins_prompt(192, 256)
    assert not b.pins_prompt(193, 256)


def test_negative_budgets_are_refused() -> None:
    b = Budgeting(512, 32, 4, 32, True, True, 32)
    with pytest.raises(ConfigError, match="budget = -1"):
        b.check("budget", -1)
