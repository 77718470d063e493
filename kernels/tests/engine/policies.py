"""Policies small enough to fire often on short requests."""

from __future__ import annotations

from typing import Any

from .models import SPECS, statistics


def document(name: str, **changes: Any) -> dict[str, Any]:
    """A preset with a budget of 64, an interval of 8 and a window of 8 tokens, unless changed.

    Prompts up to 24 tokens are then pinned (with blocks of 32), if the preset pins prompts.
    """
    import msgspec

    from triattn.config import preset

    policy = msgspec.to_builtins(preset(name))
    pin = {"prompt": policy["pin"]["prompt"], "sinks": 4, "window": 8} | changes.pop("pin", {})
    return {**policy, "budget": 64, "interval": 8, **changes, "pin": pin}


def plugin(model: str, name: str = "random", **changes: Any) -> dict[str, Any]:
    """``additional_config["triattn"]`` with such a policy, and statistics of random numbers if it uses them.

    Where the policy's ``statistics`` are optional it gets them, unless `bare`.
    """
    bare = changes.pop("bare", False)
    policy = document(name, **changes)
    terms = policy["terms"] + (policy["reserve"] or {"terms": []})["terms"]
    needs = any(term["kind"] in ("trig", "norm", "expected", "probe") for term in terms)
    return {"policy": policy} | ({"statistics": str(statistics(SPECS[model]))} if needs and not bare else {})
