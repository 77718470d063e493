"""A control plane and links to it, closed when the test is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from triattn.link import EngineLink

from .peer import HELLO, Control


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/s"


@pytest.fixture
def control(endpoint: str) -> Iterator[Control]:
    control = Control(endpoint)
    yield control
    control.close()


@pytest.fixture
def connect(endpoint: str) -> Iterator[Callable[..., EngineLink]]:
    links = []

    def make(**options: Any) -> EngineLink:
        links.append(
            EngineLink(endpoint, HELLO, **{"idle": 0.05, "heartbeat": 0.1, "flush": 0.01, **options})
        )
        return links[-1]

    yield make
    for link in links:
        link.close("test over")
