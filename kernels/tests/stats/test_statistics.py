"""Statistics files: whole ones load, damaged and foreign ones are refused by one clear error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.stats.make_vectors import ACCEPTED
from triattn.model import Statistics, StatisticsError, geometry, identity, inv_freq
from triattn.statistics import TENSORS, Learned, save

SHIPPED = Path(__file__).parents[3] / "stats"
CONFIG = {**ACCEPTED["llama 3.1"], "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIG["hidden_size"] = 64


def random_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    real, imag, extra = torch.rand(3, 3, 4, 8, generator=generator)
    return {
        "q_mean_real": real,
        "q_mean_imag": imag,
        "q_abs_mean": torch.hypot(real, imag) + extra,
        "inv_freq": inv_freq(CONFIG)[0],
    }


def write(path: Path, **changes: Any) -> Statistics:
    origin = {"tokens": 100, "source": "test", "license": "", "created_by": "test"}
    model = changes.pop("model", geometry(CONFIG, name="tiny"))
    return save(
        path, changes.pop("tensors", random_tensors()), model, identity(CONFIG), **{**origin, **changes}
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def rewrite(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: Any) -> None:
    """Save the file again with other tensors or metadata, without the checks of `save`."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        old = json.loads(file.metadata()["triattn"])
    text = json.dumps({**old, **metadata})
    save_file(tensors or load_file(path), path, metadata={"triattn": text})


def test_round_trip(path: Path) -> None:
    stats = Statistics.load(path)
    for name, tensor in random_tensors().items():
        assert torch.equal(getattr(stats, name), tensor)
    assert stats.metadata.tokens == 100 and stats.model == geometry(CONFIG, name="tiny")
    stats.check(geometry(CONFIG, name="another name for it"))


def test_part_of_one_rank(path: Path) -> None:
    stats = Statistics.load(path)
    part = stats.part([2, 0], slice(2, 4))
    assert torch.equal(part.q_mean_real, stats.q_mean_real[[2, 0]][:, 2:4])
    assert torch.equal(part.q_abs_mean, stats.q_abs_mean[[2, 0]][:, 2:4])
    assert torch.equal(part.inv_freq, stats.inv_freq)


LEARNED = Learned(terms=["trig", "keydiff"], tokens=50, seed=0, kept={"learned": 0.5})


def learned_tensors() -> dict[str, torch.Tensor]:
    tensors = random_tensors()
    generator = torch.Generator().manual_seed(1)
    return {
        **tensors,
        "learned_weights": torch.randn(2, 3, 2, generator=generator),
        "learned_share": torch.rand(3, 2, generator=generator),
    }


def test_learned_weights_come_along(tmp_path: Path) -> None:
    stats = write(tmp_path / "more.safetensors", tensors=learned_tensors(), learned=LEARNED)
    assert stats.metadata.format == 2 and stats.learned_terms == ("trig", "keydiff")
    for name, tensor in learned_tensors().items():
        assert torch.equal(getattr(stats, name), tensor)
    part = stats.part([2, 0], slice(2, 4))
    assert torch.equal(part.learned_weights, stats.learned_weights[:, [2, 0]][:, :, 1:])
    assert torch.equal(part.learned_share, stats.learned_share[[2, 0]][:, 1:])
    assert write(tmp_path / "plain.safetensors").metadata.format == 1


@pytest.mark.parametrize(
    ("change", "learned", "what"),
    [
        ({"learned_share": torch.full((3, 2), 1.5)}, LEARNED, "learned_share"),
        ({"learned_weights": torch.zeros(3, 3, 2)}, LEARNED, "learned_weights"),
        ({"learned_weights": torch.full((2, 3, 2), torch.nan)}, LEARNED, "learned_weights"),
        ({}, None, "learned"),
        ({}, msgspec.structs.replace(LEARNED, terms=["trig", "trig"]), "twice"),
    ],
)
def test_what_was_never_learned_is_refused(tmp_path: Path, change, learned, what) -> None:
    with pytest.raises(StatisticsError, match=what):
        write(tmp_path / "bad.safetensors", tensors={**learned_tensors(), **change}, learned=learned)
    assert not list(tmp_path.iterdir())


def test_format_1_has_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "more.safetensors"
    write(path, tensors=learned_tensors(), learned=LEARNED)
    rewrite(path, format=1)
    with pytest.raises(StatisticsError, match="has no tensors beside"):
        Statistics.load(path)


def covariance_tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = random_tensors()
    real, imag = torch.rand(2, 3, 4, 8, generator=torch.Generator().manual_seed(2)) * 4 + 4
    return {**tensors, "q_covariance": torch.stack([real, imag, (real * imag).sqrt() / 2]), **changes}


def test_covariances_come_along(tmp_path: Path) -> None:
    stats = write(tmp_path / "more.safetensors", tensors=covariance_tensors())
    assert stats.metadata.format == 3
    assert torch.equal(stats.q_covariance, covariance_tensors()["q_covariance"])
    part = stats.part([2, 0], slice(2, 4))
    assert torch.equal(part.q_covariance, stats.q_covariance[:, [2, 0]][:, :, 2:4])
    whole = write(
        tmp_path / "all.safetensors", tensors={**learned_tensors(), **covariance_tensors()}, learned=LEARNED
    )
    assert whole.metadata.format == 3 and whole.learned_terms == ("trig", "keydiff")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda c: c.clone().index_fill_(0, torch.tensor([1]), -1.0), "a negative variance"),
        (lambda c: c * torch.tensor([1.0, 1.0, 3.0])[:, None, None, None], "larger than its variances"),
        (lambda c: c * 1e-4, "smaller than q_abs_mean"),
        (lambda c: c * torch.nan, "not finite"),
        (lambda c: c[:2].contiguous(), "must be float32"),
    ],
)
def test_covariances_that_cannot_be(tmp_path: Path, change, what) -> None:
    tensors = covariance_tensors()
    tensors["q_covariance"] = change(tensors["q_covariance"])
    with pytest.raises(StatisticsError, match=what) as caught:
        write(tmp_path / "bad.safetensors", tensors=tensors)
    assert "q_covariance" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_probe_comes_along(tmp_path: Path) -> None:
    probe = torch.randn(3, 2, geometry(CONFIG).head_dim + 6, 16, generator=torch.Generator().manual_seed(3))
    tensors = {**learned_tensors(), **covariance_tensors(), "learned_probe": probe}
    learned = msgspec.structs.replace(LEARNED, terms=["trig", "probe"])
    stats = write(tmp_path / "probe.safetensors", tensors=tensors, learned=learned)
    assert stats.metadata.format == 5 and stats.learned_terms == ("trig", "probe")
    part = stats.part([2, 0], slice(2, 4))
    assert torch.equal(part.learned_probe, probe[[2, 0]][:, 1:2])
    with pytest.raises(StatisticsError, match="probe and learned_probe go together"):
        write(tmp_path / "a.safetensors", tensors=tensors, learned=LEARNED)
    del tensors["learned_probe"]
    with pytest.raises(StatisticsError, match="probe and learned_probe go together"):
        write(tmp_path / "b.safetensors", tensors=tensors, learned=learned)
    with pytest.raises(StatisticsError, match="learned_probe"):
        wrong = {**tensors, "learned_probe": probe[:, :, :4]}
        write(tmp_path / "c.safetensors", tensors=wrong, learned=learned)


def test_covariances_and_format_go_together(tmp_path: Path) -> None:
    path = tmp_path / "more.safetensors"
    for form in (1, 2):
        write(path, tensors=covariance_tensors())
        rewrite(path, format=form)
        with pytest.raises(StatisticsError, match="format"):
            Statistics.load(path)
    write(path)
    rewrite(path, format=3)
    with pytest.raises(StatisticsError, match="q_covariance makes a file one of format 3"):
        Statistics.load(path)
    learned = msgspec.structs.replace(LEARNED, terms=["trig", "expected"])
    with pytest.raises(StatisticsError, match="expected needs q_covariance"):
        write(path, tensors=learned_tensors(), learned=learned)


def test_every_truncation_is_refused(path: Path) -> None:
    data = path.read_bytes()
    for length in {0, 1, 7, 8, 9, 100, *range(200, len(data), 97), len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(StatisticsError, match="not a whole safetensors file"):
            Statistics.load(path)


def test_every_changed_byte_of_data_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    for at in range(start, len(data), 131):
        damaged = data.copy()
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(StatisticsError):
            Statistics.load(path)


def test_changed_bytes_of_the_header_never_pass_for_something_else(path: Path) -> None:
    whole, data = Statistics.load(path), bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    for at in range(0, start, 7):
        damaged = data.copy()
        damaged[at] ^= 0x01
        path.write_bytes(damaged)
        try:
            found = Statistics.load(path)
        except StatisticsError:
            continue
        # Only free text may differ.
        assert msgspec.structs.replace(found.model, name="") == msgspec.structs.replace(whole.model, name="")
        assert torch.equal(found.q_mean_real, whole.q_mean_real)


def test_foreign_files(tmp_path: Path, path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(StatisticsError, match="not of triattn statistics"):
        Statistics.load(foreign)
    foreign.write_text("hello")
    with pytest.raises(StatisticsError, match="not a whole safetensors file"):
        Statistics.load(foreign)
    for missing in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(StatisticsError):
            Statistics.load(missing)
    rewrite(path, format=4)
    with pytest.raises(StatisticsError, match="reads 1, 2, 3 and 5"):
        Statistics.load(path)


@pytest.mark.parametrize("damage", ["nan", "impossible", "shape", "dtype", "name", "frequencies"])
def test_tensors_that_cannot_be(path: Path, damage: str) -> None:
    tensors = random_tensors()
    if damage == "nan":
        tensors["q_mean_imag"][1, 2, 3] = float("nan")
    if damage == "impossible":
        tensors["q_abs_mean"][0, 0, 0] = 0.0
    if damage == "shape":
        tensors["q_mean_real"] = tensors["q_mean_real"][:2].contiguous()
    if damage == "dtype":
        tensors["q_abs_mean"] = tensors["q_abs_mean"].double()
    if damage == "name":
        tensors["q_mean"] = tensors.pop("q_mean_real")
    if damage == "frequencies":
        tensors["inv_freq"] = tensors["inv_freq"] * 1.01
    rewrite(path, tensors)
    with pytest.raises(StatisticsError) as caught:
        Statistics.load(path)
    assert str(path) in str(caught.value)


def test_metadata_that_contradicts_itself(path: Path) -> None:
    for change in ({"identity": {**identity(CONFIG), "vocabSize": 7}}, {"tokens": "many"}, {"more": 1}):
        write(path)
        rewrite(path, **change)
        with pytest.raises(StatisticsError):
            Statistics.load(path)


def test_another_model_is_refused_with_both_fingerprints(path: Path) -> None:
    stats = Statistics.load(path)
    other = geometry({**CONFIG, "num_hidden_layers": 5}, name="other")
    with pytest.raises(StatisticsError) as caught:
        stats.check(other)
    message = str(caught.value)
    assert stats.model.fingerprint in message and other.fingerprint in message
    assert "tiny" in message and "other" in message and "layers 3 and 5" in message
    vocabulary = geometry({**CONFIG, "vocab_size": 100})
    with pytest.raises(StatisticsError, match=vocabulary.fingerprint):
        stats.check(vocabulary)


def test_other_weights_of_the_same_geometry(tmp_path: Path) -> None:
    own = msgspec.structs.replace(geometry(CONFIG, name="tiny"), weights="a" * 64)
    stats = write(tmp_path / "tiny.safetensors", model=own)
    stats.check(msgspec.structs.replace(own, weights=None))
    with pytest.raises(StatisticsError) as caught:
        stats.check(msgspec.structs.replace(own, weights="b" * 64))
    assert "a" * 64 in str(caught.value) and "b" * 64 in str(caught.value)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.safetensors"
    write(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StatisticsError, match="No space left on device"):
        write(path, tensors=random_tensors(1))
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
    monkeypatch.undo()
    bad = random_tensors(1)
    bad["q_abs_mean"] = bad["q_abs_mean"] * 0
    with pytest.raises(StatisticsError, match="impossible"):
        write(path, tensors=bad)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
    with pytest.raises(StatisticsError, match="cannot be written"):
        write(tmp_path / "missing" / "tiny.safetensors")


def test_what_ships() -> None:
    index = json.loads((SHIPPED / "index.json").read_text())["statistics"]
    assert sorted(e["file"] for e in index) == sorted(p.name for p in SHIPPED.glob("*.safetensors"))
    for entry in index:
        stats = Statistics.load(SHIPPED / entry["file"])
        assert stats.model.fingerprint == entry["fingerprint"] and stats.model.weights == entry["weights"]
        assert stats.model.name in entry["models"] and stats.metadata.tokens == entry["tokens"]
        assert stats.metadata.license == entry["license"] == "Apache-2.0"
        assert set(TENSORS) == {"q_mean_real", "q_mean_imag", "q_abs_mean", "inv_freq"}
    total = sum(p.stat().st_size for p in SHIPPED.rglob("*") if p.is_file())
    assert total < 6 * 2**20
