"""Geometry and fingerprint of models as they publish themselves; packages/control/test/stats runs the same
vectors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from tests.stats.make_vectors import ACCEPTED, REFUSED, VECTORS, build
from triattn.model import ModelError, canonical_json, fingerprint, geometry, identity, inv_freq

VECTOR = json.loads(VECTORS.read_text())


def known(config: dict[str, Any]) -> Any:
    """The configuration object that transformers makes of a config.json."""
    rest = {k: v for k, v in json.loads(json.dumps(config)).items() if k != "model_type"}
    return AutoConfig.for_model(config["model_type"], **rest)


def test_the_vectors_are_those_that_the_code_makes() -> None:
    made = build()
    assert made["refused"] == VECTOR["refused"]
    for new, old in zip(made["accepted"], VECTOR["accepted"], strict=True):
        assert {**new, "inverse": 0} == {**old, "inverse": 0}
        assert new["inverse"] == pytest.approx(old["inverse"], rel=1e-6)


@pytest.mark.parametrize("name", ACCEPTED)
def test_fingerprint(name: str) -> None:
    expected = next(v for v in VECTOR["accepted"] if v["name"] == name)
    config = known(expected["config"])
    for _ in range(2):
        # Twice: standardizing changes configuration objects, but never the fingerprint.
        assert canonical_json(identity(config)) == expected["canonical"]
        assert geometry(config).fingerprint == expected["fingerprint"]
        config.standardize_rope_params()
    inverse, scaling = inv_freq(config)
    assert inverse.dtype == torch.float32
    assert inverse.tolist() == pytest.approx(expected["inverse"], rel=1e-6)
    assert scaling == pytest.approx(expected["attentionScaling"])
    assert geometry(config).rotary.pairing == expected["pairing"]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    config, field = REFUSED[name]
    with pytest.raises(ModelError) as caught:
        geometry(config)
    assert caught.value.field == field
    assert caught.value.remedy in str(caught.value) and field in str(caught.value)


@pytest.mark.parametrize("name", ["no rotary embedding", "longrope", "several axes"])
def test_a_model_without_usable_rotation_has_a_geometry_where_none_is_needed(name: str) -> None:
    config, _ = REFUSED[name]
    found = geometry(config, need_rotary=False)
    assert found.rotary is None
    assert found.fingerprint == fingerprint(identity(config, need_rotary=False))


def test_the_frequencies_are_those_of_the_model_itself() -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    for name in ("llama 3.1", "llama, linear, old key"):
        config = known(ACCEPTED[name])
        own = LlamaRotaryEmbedding(config)
        inverse, scaling = inv_freq(config)
        assert torch.equal(inverse, own.inv_freq) and scaling == own.attention_scaling


def test_every_parameter_changes_the_fingerprint() -> None:
    base = ACCEPTED["qwen3, yarn with its own factors"]
    changed = [
        {**base, name: base[name] * 2}
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "head_dim",
            "vocab_size",
            "rope_theta",
        )
    ] + [
        {**base, "rope_scaling": {**base["rope_scaling"], name: 3}}
        for name in (
            "factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "original_max_position_embeddings",
        )
    ]
    prints = [geometry(config).fingerprint for config in [base, *changed]]
    assert len(set(prints)) == len(prints)


def test_pairing_of_an_unknown_type_comes_from_the_engine_or_not_at_all() -> None:
    config = {**ACCEPTED["llama, theta not whole"], "model_type": "my_own"}
    with pytest.raises(ModelError, match="my_own"):
        geometry(config)
    assert geometry(config, pairing="interleaved").rotary.pairing == "interleaved"
    with pytest.raises(ModelError, match="pair half"):
        geometry(LlamaConfig(), pairing="interleaved")


def test_text_part_of_a_multimodal_configuration() -> None:
    inner = ACCEPTED["gemma3, one set a layer type"]
    assert geometry({"model_type": "gemma3", "text_config": inner}) == geometry(inner)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e6, "1000000"), (1e-7, "0.0000001"), (0.1, "0.1"), (2.5e-9, "0.0000000025"), (True, "true")],
)
def test_canonical_numbers(value: Any, text: str) -> None:
    assert canonical_json(value) == text
