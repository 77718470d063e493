"""The generated messages against the vectors that packages/protocol/test is held to as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from triattn import wire

VECTORS = Path(__file__).parents[2] / "test" / "vectors"
DECODERS = {
    "engine": msgspec.msgpack.Decoder(wire.EngineMessage),
    "control": msgspec.msgpack.Decoder(wire.ControlMessage),
}


def load(name: str) -> list[dict[str, Any]]:
    return json.loads((VECTORS / f"{name}.json").read_text("utf-8"))


def untag(value: Any) -> Any:
    """JSON has neither 64-bit integers nor bytes: `{"$int": digits}` and `{"$bytes": hex}`."""
    if isinstance(value, list):
        return [untag(entry) for entry in value]
    if isinstance(value, dict):
        if value.keys() == {"$int"}:
            return int(value["$int"])
        if value.keys() == {"$bytes"}:
            return bytes.fromhex(value["$bytes"])
        return {key: untag(entry) for key, entry in value.items()}
    return value


@pytest.mark.parametrize("vector", load("values"), ids=lambda vector: vector["hex"][:24])
def test_values(vector: dict[str, Any]) -> None:
    value = untag(vector["value"])
    assert msgspec.msgpack.encode(value).hex() == vector["hex"]
    decoded = msgspec.msgpack.decode(bytes.fromhex(vector["hex"]))
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize("vector", load("messages"), ids=lambda vector: vector["name"])
def test_messages(vector: dict[str, Any]) -> None:
    message = DECODERS[vector["from"]].decode(bytes.fromhex(vector["hex"]))
    assert msgspec.to_builtins(message, builtin_types=(bytes,)) == untag(vector["message"])
    if vector["from"] == "engine":
        assert msgspec.msgpack.encode(message).hex() == vector["hex"]


@pytest.mark.parametrize("vector", load("refused"), ids=lambda vector: vector["name"])
def test_refused(vector: dict[str, Any]) -> None:
    with pytest.raises((msgspec.MsgspecError, RecursionError)):
        DECODERS[vector["from"]].decode(bytes.fromhex(vector["hex"]))


def test_messages_are_values() -> None:
    ack = wire.Ack(revision=1, step=2)
    with pytest.raises(AttributeError):
        ack.step = 3  # type: ignore[misc]
    assert msgspec.structs.replace(ack, step=3) == wire.Ack(revision=1, step=3)


def test_presets_are_complete() -> None:
    presets = json.loads((Path(wire.__file__).parent / "presets.json").read_text("utf-8"))
    assert presets
    for name, document in presets.items():
        policy = msgspec.convert(document, wire.PolicyDocument)
        assert policy.name == name
        assert msgspec.to_builtins(policy) == document
