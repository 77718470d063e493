"""What a model is: its geometry, the fingerprint over it, and its rotary frequencies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from triattn import rotary, wire
from triattn.fingerprint import canonical_json, fingerprint
from triattn.rotary import ModelError, get
from triattn.statistics import Statistics, StatisticsError
from triattn.weights import weights_digest

if TYPE_CHECKING:
    import torch

__all__ = [
    "ModelError",
    "Statistics",
    "StatisticsError",
    "canonical_json",
    "fingerprint",
    "geometry",
    "identity",
    "inv_freq",
    "weights_digest",
]


def _count(config: Any, field: str, default: int | None = None) -> int:
    value = get(config, field)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(
            field,
            value,
            "must be one positive whole number for all layers; unsupported or damaged config.json",
        )
    return value


def text_config(config: Any) -> Any:
    """The language model's part of a configuration (itself, where there is only one)."""
    inner = get(config, "text_config")
    return config if inner is None else inner


def identity(config: Any, *, need_rotary: bool = True) -> dict[str, Any]:
    """What the fingerprint is taken over: {headDim, hiddenSize, kvHeads, layers, queryHeads, rotary,
    vocabSize}.

    `config` is a transformers configuration or a mapping with the same names. `rotary` is None for a model
    without supported rotary embedding, which is an error (ModelError) unless `need_rotary` is False.
    """
    config = text_config(config)
    query_heads = _count(config, "num_attention_heads")
    hidden = _count(config, "hidden_size")
    # Deriving the head dimension is transformers' rule for every configuration that does not name one.
    head_dim = _count(config, "head_dim", hidden // query_heads)
    kv_heads = _count(config, "num_key_value_heads", query_heads)
    if query_heads % kv_heads:
        raise ModelError(
            "num_key_value_heads", kv_heads, f"does not divide num_attention_heads = {query_heads}"
        )
    try:
        parameters = rotary.canonical(config, head_dim)
    except ModelError:
        if need_rotary:
            raise
        parameters = None
    return {
        "headDim": head_dim,
        "hiddenSize": hidden,
        "kvHeads": kv_heads,
        "layers": _count(config, "num_hidden_layers"),
        "queryHeads": query_heads,
        "rotary": parameters,
        "vocabSize": _count(config, "vocab_size"),
    }


def geometry(
    config: Any,
    model_dir: str | Path | None = None,
    *,
    name: str | None = None,
    pairing: str | None = None,
    need_rotary: bool = True,
) -> wire.ModelGeometry:
    """Geometry of the whole model, as it goes over the wire and into statistics.

    `config`: transformers configuration (vLLM: `model_config.hf_text_config`) or a mapping with the same
    names.
    `model_dir`: where its safetensors lie, for the weights digest; None, or a directory without them, gives
    none.
    `pairing`: `half` or `interleaved` where the engine knows it; needed only for model types not listed in
    `rotary`.
    `need_rotary=False` gives `rotary=None` instead of an error for a model whose rotary embedding is missing
    or not supported; policies with trig or norm terms cannot serve such a model.

    Raises ModelError (field, value, remedy) for what is missing or not supported.
    """
    config = text_config(config)
    what = identity(config, need_rotary=need_rotary)
    rope = None
    if what["rotary"] is not None:
        try:
            rope = wire.Rotary(
                type=what["rotary"]["type"],
                theta=float(what["rotary"]["theta"]),
                dim=what["rotary"]["dim"],
                attention_scaling=rotary.frequencies(what["rotary"])[1],
                pairing=rotary.pairing(get(config, "model_type"), pairing),
            )
        except ModelError:
            if need_rotary:
                raise
            what["rotary"] = None
    directory = Path(model_dir) if model_dir is not None else None
    return wire.ModelGeometry(
        name=name or get(config, "_name_or_path") or (directory.resolve().name if directory else "unnamed"),
        fingerprint=fingerprint(what),
        weights=weights_digest(directory) if directory else None,
        layers=what["layers"],
        query_heads=what["queryHeads"],
        kv_heads=what["kvHeads"],
        head_dim=what["headDim"],
        rotary=rope,
    )


def inv_freq(config: Any) -> tuple[torch.Tensor, float]:
    """Rotary frequencies after scaling: (float32 [F = rotary dim / 2], radians a token; factor on cos and
    sin).

    Raises ModelError where the parameters are missing or not supported.
    """
    parameters = identity(config)["rotary"]
    return rotary.frequencies(parameters)
