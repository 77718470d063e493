"""What triattn knows of SGLang's requests, and the check of their options where the client can still be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from triattn.errors import ConfigError
from triattn.plan import Budgeting
from triattn.rules import BUDGET_OPTION, PREFIX, TAGS_OPTION, Verdict, check_options, parse_tags


@dataclass(slots=True)
class RequestState:
    """Of a request that holds KV: E, what its last round left, and what the policy says of it."""

    evicted: int = 0
    resident: int = 0
    """Resident tokens right after the last round (0: none)."""
    rounds: int = 0
    scored: tuple[int, int] | None = None
    """Revision and number of the policy that scored the last round."""
    verdict: Verdict | None = None
    generation: int = -1
    """Of the policy that the verdict is from."""
    inserts: bool = True
    """Whether the request was to enter the radix tree before it was compressed."""
    reserved: bool = False
    """It was admitted for what its budget lets it hold, not for its length."""


ATTRIBUTE = "_triattn"
"""Where a request carries its state."""
BEYOND = "_triattn_beyond"
"""Of a request that may outgrow the pool; for as long as it lives."""


def state_of(request: Any) -> RequestState:
    """The state of a request, made where there is none."""
    state = getattr(request, ATTRIBUTE, None)
    if state is None:
        state = RequestState()
        setattr(request, ATTRIBUTE, state)
    return state


def options_of(request: Any) -> dict[str, Any]:
    """A request's ``custom_params``."""
    options = getattr(request.sampling_params, "custom_params", None)
    return options if isinstance(options, dict) else {}


def own_budget(request: Any) -> int | None:
    """A request's own budget in tokens (0: never compress), or None."""
    value = options_of(request).get(BUDGET_OPTION)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def tags_of(request: Any) -> tuple[str, ...]:
    """A request's tags; what cannot be read was refused before it came here."""
    try:
        return parse_tags(options_of(request).get(TAGS_OPTION))
    except ConfigError:
        return ()


def check_custom_params(options: Any, budgeting: Budgeting | None) -> None:
    """Refuse unknown ``triattn_*`` names, tags that are none, and budgets that cannot work.

    Args:
        options: ``custom_params`` as the client sent them.
        budgeting: of the start-up policy, if known here.

    Raises:
        ConfigError: a ValueError, which SGLang answers with a 400.
    """
    if not isinstance(options, dict) or not any(str(name).startswith(PREFIX) for name in options):
        return
    budget, _ = check_options({str(name): value for name, value in options.items()})
    if budget is not None and budgeting is not None:
        budgeting.check(BUDGET_OPTION, budget)
