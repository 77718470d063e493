"""Runners that are built differently from what triattn knows are refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from triattn.engines.rounds import uses_kernels
from triattn.engines.vllm.probe import check_runner_v1
from triattn.errors import ConfigError


class Tables(list):
    """Block tables of the groups of a batch."""

    def compute_slot_mapping(self) -> None: ...


def runner(**changes: Any) -> SimpleNamespace:
    table = SimpleNamespace(block_table=None, block_size=16, num_blocks_per_row=None)
    parts: dict[str, Any] = {
        **dict.fromkeys(("execute_model", "sample_tokens", "_prepare_inputs", "requests")),
        "input_batch": SimpleNamespace(block_table=Tables([table])),
        "device": torch.device("cpu"),
        "seq_lens": torch.zeros(4, dtype=torch.int32),
        "optimistic_seq_lens_cpu": torch.zeros(4, dtype=torch.int32),
        **changes,
    }
    return SimpleNamespace(**{name: part for name, part in parts.items() if part != "missing"})


def test_a_runner_as_it_is_known() -> None:
    check_runner_v1(runner())
    check_runner_v1(runner(cascade_attn_enabled=False))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sample_tokens": "missing"}, r"sample_tokens = 'missing'"),
        ({"seq_lens": "missing"}, r"seq_lens = 'missing'"),
        ({"seq_lens": SimpleNamespace(np=1)}, r"seq_lens = 'on None'"),
        ({"device": torch.device("cuda")}, r"seq_lens = 'on cpu'"),
        ({"cascade_attn_enabled": True}, r"disable_cascade_attn = False"),
        (
            {"input_batch": SimpleNamespace(block_table=Tables([SimpleNamespace()]))},
            r"block_table = 'missing'",
        ),
    ],
)
def test_another_is_refused(changes: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triattn.engines.vllm.probe.engine_version", lambda: "0")
    with pytest.raises(ConfigError, match=named):
        check_runner_v1(runner(**changes))


def test_where_rounds_are_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIATTN_ROUNDS", raising=False)
    assert uses_kernels("cuda")
    assert not uses_kernels("cpu")
    monkeypatch.setenv("TRIATTN_ROUNDS", "triton")
    assert uses_kernels("cpu")
