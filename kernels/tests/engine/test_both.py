"""The scenario that both engines run gives the counters that both must show."""

from __future__ import annotations

from typing import Any

import pytest

from .both import arguments, scenario, shown
from .driver import Driver
from .rig import check, run
from .scenario import Scenario

pytestmark = pytest.mark.engine


def finish(driver: Driver) -> dict[str, int]:
    """The engine's counters."""
    return shown(driver.scheduler.triattn.counters())


def test_counters() -> None:
    common: dict[str, Any] = arguments()
    result = run(Scenario(**common, block_size=scenario()["block"], on_finish=finish))
    check(result)
    assert result.extra == scenario()["counters"]
