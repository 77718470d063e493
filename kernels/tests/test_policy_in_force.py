"""What a revision makes ranks prepare anew, and what is read again. No engine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from triattn import wire
from triattn.config import preset
from triattn.engines.policy import PolicyInForce, check_policy, load_statistics, scoring_key
from triattn.errors import ConfigError
from triattn.policies import ModelShape, Policy
from triattn.rules import Rules
from triattn.statistics import Statistics

STATS = Path(__file__).parents[2] / "stats" / "smollm2-135m-instruct.safetensors"


def in_force(of: str = "triattention", statistics: str | None = str(STATS), **changes: Any) -> PolicyInForce:
    return PolicyInForce(1, replace(preset(of), **changes), statistics, (preset("random"),))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"budget": 512},
        {"interval": 1},
        {"count_prompt": False},
        {"pin": wire.Pin(prompt=False)},
    ],
)
def test_integers_prepare_nothing(changes: dict[str, Any]) -> None:
    assert scoring_key(in_force(**changes), 0) == scoring_key(in_force(), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"selection": "union"},
        {"normalize": "none"},
        {"pin": wire.Pin(window=64)},
        {"pin": wire.Pin(sinks=0)},
        {"terms": [wire.NormTerm()]},
        {"terms": [wire.TrigTerm(weight=2.0), wire.NormTerm()]},
    ],
)
def test_scores_do(changes: dict[str, Any]) -> None:
    assert scoring_key(in_force(**changes), 0) != scoring_key(in_force(), 0)


def test_statistics_count_where_they_are_read(tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    shutil.copy(STATS, copy)
    before = scoring_key(in_force(statistics=str(copy)), 0)
    assert before != scoring_key(in_force(), 0)
    assert scoring_key(in_force(statistics=str(copy)), 1) == scoring_key(in_force(), 1)
    os.utime(copy, ns=(1, 1))
    assert before != scoring_key(in_force(statistics=str(copy)), 0)
    assert scoring_key(in_force(statistics=None), 0) is None
    assert scoring_key(in_force("random", statistics=None), 0) is not None


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy.safetensors"
    shutil.copy(STATS, copy)
    read: list[str] = []
    load = Statistics.load

    def counted(path: str) -> Statistics:
        read.append(path)
        return load(path)

    monkeypatch.setattr(Statistics, "load", staticmethod(counted))
    model = load(STATS).model
    for _ in range(3):
        load_statistics(str(copy), model)
    assert len(read) == 1
    os.utime(copy, ns=(1, 1))
    load_statistics(str(copy), model)
    assert len(read) == 2


@pytest.mark.parametrize("path", ["/dev/zero", "/nowhere/at/all", "nul\0byte", "."])
def test_what_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="statistics = "):
        load_statistics(path, Statistics.load(STATS).model)


def shape_of(model: wire.ModelGeometry) -> ModelShape:
    return ModelShape(
        layer_ids=tuple(range(model.layers)),
        kv_head_ids=tuple(range(model.kv_heads)),
        query_head_ids=tuple(range(model.query_heads)),
        head_dim=model.head_dim,
        rotary_dim=model.rotary.dim,
        inv_freq=torch.ones(model.rotary.dim // 2),
        attention_scaling=1.0,
    )


def checked(terms: list[Any], **options: Any) -> None:
    model = Statistics.load(STATS).model
    policy = in_force(terms=terms, normalize="each")
    check_policy(policy, Rules.of(policy, 16), model, shape_of(model), **options)


TWICE = [wire.TrigTerm(max_offset=4), wire.TrigTerm(max_offset=8)]


def test_terms_without_a_kernel_are_refused_where_kernels_run() -> None:
    checked(TWICE)
    with pytest.raises(ConfigError, match="each kind of term can stand once"):
        checked(TWICE, kernels=True)
    checked(TWICE[:1], kernels=True)


def test_what_is_known_to_work_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    known: set[Any] = set()
    checked(TWICE[:1], kernels=True, known=known)
    assert len(known) == 2
    monkeypatch.setattr(Policy, "validate", lambda *_, **__: pytest.fail("looked at again"))
    checked(TWICE[:1], kernels=True, known=known)


def test_a_policy_that_can_do_without_statistics_is_checked_without_those_terms() -> None:
    model = Statistics.load(STATS).model
    policy = in_force("auto", statistics=None)
    check_policy(policy, Rules.of(policy, 16), model, shape_of(model), kernels=True)


def test_what_observes_needs_an_engine_that_keeps_as_many_queries() -> None:
    observing = [wire.KeyDiffTerm(), wire.ObservedTerm(window=12)]
    checked(observing, queries=12, kernels=True)
    with pytest.raises(ConfigError, match=r"keeps 8: .* restart .* TRIATTN_OBSERVED_QUERIES=12") as caught:
        checked(observing, queries=8)
    assert (caught.value.field, caught.value.value) == ("terms", "observed")
    with pytest.raises(ConfigError, match="serve with vLLM, or use a policy without the term observed"):
        checked(observing)
    checked([wire.RedundancyTerm()])
