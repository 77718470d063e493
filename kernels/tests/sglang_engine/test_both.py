"""The scenario that both engines run gives the counters that both must show."""

from __future__ import annotations

import pytest
from engine.both import arguments, scenario, shown

from .driver import Driver
from .rig import check, run
from .scenario import Scenario

pytestmark = pytest.mark.engine


def finish(driver: Driver) -> dict[str, int]:
    """The engine's counters."""
    return shown(driver.hooks.reports.counters())


def test_counters() -> None:
    result = run(Scenario(**arguments(), page=scenario()["block"], on_finish=finish))
    check(result)
    assert result.extra == scenario()["counters"]
