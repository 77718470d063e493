"""The digest over a model's weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from triattn.weights import weights_digest

Q, K = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
# packages/control/test/stats/weights.test.ts makes the same tensors and expects the same digest.
DIGEST = "cadad3aa68ae44119cc9a562e9fda1879258ee12807a345091d7f4f2aa7d3952"


def tensors(shift: int = 0) -> dict[str, np.ndarray]:
    def ramp(rows: int) -> np.ndarray:
        return ((np.arange(rows * 96) + shift) % 251).astype(np.float32).reshape(rows, 96)

    return {
        "lm_head.weight": ramp(3),
        Q: ramp(128),
        K: ramp(16),
        "model.layers.1.self_attn.q_proj.weight": ramp(4),
    }


def test_digest_does_not_depend_on_the_layout_of_files(tmp_path: Path) -> None:
    one, two, other = tmp_path / "one", tmp_path / "two", tmp_path / "other"
    for directory in (one, two, other):
        directory.mkdir()
    save_file(tensors(), one / "model.safetensors", metadata={"format": "pt"})
    parts = tensors()
    save_file({Q: parts.pop(Q)}, two / "model-00001-of-00002.safetensors")
    save_file(parts, two / "model-00002-of-00002.safetensors")
    assert weights_digest(one) == weights_digest(two) == DIGEST
    names = {Q: "model-00001-of-00002.safetensors"} | dict.fromkeys(parts, "model-00002-of-00002.safetensors")
    (two / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert weights_digest(two) == DIGEST
    save_file(tensors(1), other / "model.safetensors")
    assert weights_digest(other) not in (None, DIGEST)


def test_layers_of_another_tower_do_not_count(tmp_path: Path) -> None:
    save_file(
        {**tensors(), f"vision_tower.{Q}": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors"
    )
    assert weights_digest(tmp_path) == DIGEST


@pytest.mark.parametrize(
    "damage", ["absent", "empty", "truncated", "text", "quantized", "no projections", "twice"]
)
def test_null_where_weights_cannot_be_compared(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    content = tensors()
    if damage == "quantized":
        content[Q] = content[Q].astype(np.int8)
    if damage == "no projections":
        content = {"lm_head.weight": content["lm_head.weight"]}
    if damage == "twice":
        content[f"other.{Q}"] = content[Q]
    if damage != "absent":
        save_file(content, path)
    if damage in ("empty", "text"):
        path.write_bytes(b"" if damage == "empty" else b"version https://git-lfs.github.com/spec/v1\n")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:700])
    assert weights_digest(tmp_path) is None
