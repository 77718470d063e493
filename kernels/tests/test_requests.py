"""A request's own budget: what the API refuses before the engine sees it."""

from __future__ import annotations

import pytest

from triattn.engines.vllm.requests import check_extra_args
from triattn.errors import ConfigError
from triattn.plan import Budgeting

BUDGETING = Budgeting(512, 128, 4, 128, True, True, 32)


@pytest.mark.parametrize(
    "extra",
    [
        None,
        {},
        {"other": 1},
        {"triattn_budget": 0},
        {"triattn_budget": 512},
        {"triattn_tags": "a,b"},
        {"triattn_tags": ["a"]},
    ],
)
def test_what_works_passes(extra: dict[str, object] | None) -> None:
    check_extra_args(extra, BUDGETING, cache_tokens=4096, length=4096)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"triattn_budget": "512"}, "triattn_budget = '512': must be a whole number"),
        ({"triattn_budget": True}, "must be a whole number"),
        ({"triattn_budget": 1.5}, "must be a whole number"),
        ({"triattn_budget": -1}, "must be a whole number"),
        ({"triattn_budget": 10**9}, "must be a whole number"),
        ({"triattn_budget": 100}, "at least 164"),
        ({"triattn_tags": 5}, "triattn_tags = 5: must be up to 16 tags"),
        ({"triattn_budgets": 512}, "no such request option; there are triattn_budget and"),
    ],
)
def test_what_cannot_work_is_named(extra: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_extra_args(extra, BUDGETING, cache_tokens=4096, length=1000)


def test_a_request_longer_than_the_cache_needs_a_budget_that_fits_it() -> None:
    with pytest.raises(ConfigError, match="may grow to 9000 tokens, but the cache holds 4096"):
        check_extra_args({"triattn_budget": 0}, BUDGETING, cache_tokens=4096, length=9000)
    with pytest.raises(ConfigError, match="ask for at most 512"):
        check_extra_args({"triattn_budget": 513}, BUDGETING, cache_tokens=4096, length=9000)
    check_extra_args({"triattn_budget": 512}, BUDGETING, cache_tokens=4096, length=9000)
    check_extra_args({"triattn_budget": 2048}, BUDGETING, cache_tokens=4096, length=4096)
