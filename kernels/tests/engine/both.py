"""One scenario for both engines, in both.json: what happens, and the counters that either must show."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from .policies import plugin
from .rig import prompt
from .scenario import Request


@cache
def scenario() -> dict[str, Any]:
    """The file."""
    return json.loads(Path(__file__).with_name("both.json").read_text("utf-8"))


def arguments() -> dict[str, Any]:
    """Arguments that both engines' ``Scenario`` take."""
    file = scenario()
    requests = [
        Request(
            r["id"], prompt(r["prompt"]["seed"], r["prompt"]["length"]), r["tokens"], budget=r.get("budget")
        )
        for r in file["requests"]
    ]
    return {"model": file["model"], "plugin": plugin(file["model"], file["preset"]), "requests": requests}


def shown(counters: Any) -> dict[str, int]:
    """Those of an engine's counters that the file names."""
    return {name: getattr(counters, name) for name in scenario()["counters"]}
