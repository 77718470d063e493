"""What cannot work is refused before the engine is up, in one line that names field, value and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .models import SPECS, statistics
from .policies import plugin
from .rig import EngineFailed, run
from .scenario import Scenario

pytestmark = pytest.mark.engine


def refusal(plugin: dict[str, Any], **changes: Any) -> str:
    """The error's line."""
    with pytest.raises(EngineFailed) as caught:
        run(Scenario("llama", "v1", plugin, **changes))
    lines = str(caught.value).partition("--- log ---")[0].strip().splitlines()
    assert lines[-1].startswith("triattn."), lines[-1]
    return lines[-1]


def test_policies_that_cannot_work(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(statistics(SPECS["llama"]).read_bytes()[:-100])
    foreign = str(statistics(SPECS["qwen3"]))
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        (plugin("llama", budget=43), ("budget", "43", "44")),
        ({"policy": "no-such-policy"}, ("policy", "no-such-policy", "triattention")),
        ({"policy": "random", "budgets": 64}, ("budgets",)),
        ({"policy": "triattention"}, ("statistics", "None", "triattn calibrate")),
        ({"policy": "triattention", "statistics": str(damaged)}, ("statistics", "damaged.safetensors")),
        ({"policy": "triattention", "statistics": foreign}, ("fingerprint", "qwen3", "llama")),
        ({"policy": "triattention", "statistics": str(tmp_path / "none")}, ("statistics", "none")),
    ]
    for config, expected in cases:
        line = refusal(config)
        for part in expected:
            assert part in line, f"{part!r} not in {line!r}"
