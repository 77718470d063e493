"""Measure a model: load it, run the text through it, write the statistics."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import triattn
from triattn import model as models
from triattn import wire
from triattn.calibrate.accumulate import Means
from triattn.calibrate.capture import captured, prove
from triattn.calibrate.errors import CalibrationError
from triattn.calibrate.learn import Selection, learn
from triattn.calibrate.text import cut, own_documents, read_documents, windows
from triattn.policies import ModelShape
from triattn.statistics import UNITS, Statistics, save

# Largest relative error of a rotated query: a few roundings of the dtype that cos, sin and the product have.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
LEARN_LEAST = 400
"""Fewer are not worth it: tokens are looked at past sinks and window, and then watched for a while."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """What to measure and how; `tokens` None: all of the text; `learn`: tokens that selection is learned from, with the
    terms `learn_more` as further candidates; `probe_units`: hidden units of the probe.

    See the command's help.
    """

    model: str
    out: Path
    text: Sequence[Path] = ()
    tokens: int | None = None
    window: int = 2048
    device: str = "auto"
    dtype: str = "auto"
    name: str | None = None
    license: str = ""
    learn: int = 16384
    learn_more: Sequence[str] = ()
    probe_units: int = UNITS[0]
    progress: Callable[[str, int, int], None] = field(default=lambda phase, done, total: None)
    notice: Callable[[str], None] = field(default=lambda text: None)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CalibrationError("device", name, f"cannot be used ({str(error).splitlines()[0]})") from error
    return device


def _load(options: Options, config: Any) -> tuple[Any, Any]:
    """The model, ready to run, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = _device(options.device)
    dtype: Any = DTYPES.get(options.dtype, "auto")
    if options.dtype == "auto" and device.type == "cpu":
        dtype = torch.float32
    # Larger models than one GPU holds are spread by accelerate.
    spread = {"device_map": "auto"} if options.device == "auto" and device.type == "cuda" else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        network = AutoModelForCausalLM.from_pretrained(options.model, config=config, dtype=dtype, **spread)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CalibrationError("model", options.model, f"cannot be loaded ({reason})") from error
    # A pass backwards (triattn.calibrate.effect) would keep what gradients of the weights need.
    network.requires_grad_(False)
    return (network if spread else network.to(device)).eval(), tokenizer


def _check_proof(errors: dict[int, float], network: Any, config: Any) -> None:
    """Raise CalibrationError unless every layer's captured queries rotate into those that attention
    received."""
    limit = TOLERANCE.get(network.dtype, 3e-2)
    types = getattr(config, "layer_types", None)
    nested = any(isinstance(v, dict) for v in (getattr(config, "rope_parameters", None) or {}).values())
    for layer, error in errors.items():
        # Layers of another type have frequencies of their own where the configuration says so.
        if nested and types and types[layer] != "full_attention":
            continue
        if not error <= limit:
            what = f"its queries are not what rotating by the configuration's frequencies gives (limit {limit:g})"
            raise CalibrationError(
                f"rotation error of layer {layer}", f"{error:.2g}", f"{what}; unsupported model"
            )


def measure(network: Any, pieces: Sequence[Sequence[int]], config: Any, options: Options) -> Means:
    """Means of the pre-rotary queries of `network` over `pieces` (token ids), each run by itself from
    position 0."""
    parameters = models.identity(config)
    rope = models.geometry(config).rotary
    assert rope is not None
    inverse, scaling = models.inv_freq(config)
    means = Means(parameters["layers"], parameters["queryHeads"], rope.dim, rope.pairing)
    before: dict[int, torch.Tensor] = {}
    errors: dict[int, float] = {}

    def keep(layer: int, query: torch.Tensor) -> None:
        before[layer] = query
        means.add(layer, query)

    def compare(layer: int, query: torch.Tensor) -> None:
        if layer in before:
            errors[layer] = prove(before.pop(layer), query, inverse, scaling, rope.dim, rope.pairing)

    total = sum(map(len, pieces))
    # The decoder alone: logits are of no use here, and large.
    decoder = network.base_model
    with torch.inference_mode():
        for i, piece in enumerate(pieces):
            ids = torch.tensor([list(piece)], device=network.get_input_embeddings().weight.device)
            with captured(network, keep if i == 0 else means.add, compare if i == 0 else None) as layers:
                decoder(input_ids=ids, use_cache=False)
            if i == 0:
                missing = sorted(set(range(parameters["layers"])) - set(errors) & set(layers))
                if missing:
                    what = "no rotated queries were seen there; unsupported model"
                    raise CalibrationError("layers", missing, what)
                _check_proof(errors, network, config)
            options.progress("measure", means.tokens, total)
    return means


def _pieces(documents: Sequence[Any], tokenizer: Any, config: Any, options: Options) -> list[list[int]]:
    """Token ids to run, at most `options.tokens` in all. Raises CalibrationError where there are none."""
    length = min(options.window, getattr(config, "max_position_embeddings", None) or options.window)
    pieces: list[list[int]] = []
    left = options.tokens
    for window in windows(documents, tokenizer, length):
        piece = window if left is None else cut(window, 0, left)
        if len(piece) < 2:
            break
        pieces.append(piece)
        left = None if left is None else left - len(piece)
    if not pieces:
        raise CalibrationError("tokens", 0, "the text gives no tokens to measure; give more with --text")
    return pieces


def _learn(
    network: Any,
    pieces: Sequence[list[int]],
    tensors: dict[str, torch.Tensor],
    geometry: wire.ModelGeometry,
    scaling: float,
    options: Options,
) -> Selection:
    """Selection learned from at most `options.learn` tokens of the pieces, but from two at least."""
    assert geometry.rotary is not None
    shape = ModelShape(
        layer_ids=tuple(range(geometry.layers)),
        kv_head_ids=tuple(range(geometry.kv_heads)),
        query_head_ids=tuple(range(geometry.query_heads)),
        head_dim=geometry.head_dim,
        rotary_dim=geometry.rotary.dim,
        inv_freq=tensors["inv_freq"],
        attention_scaling=scaling,
        pairing=geometry.rotary.pairing,
    )
    chosen, total = [], 0
    for piece in pieces:
        if len(piece) >= LEARN_LEAST and total + len(piece) <= max(options.learn, 2 * options.window):
            chosen.append(piece)
            total += len(piece)
    options.progress("learn", 0, total)
    return learn(
        network,
        chosen,
        shape,
        SimpleNamespace(**tensors),
        lambda done: options.progress("learn", done, total),
        lambda done, steps: options.progress("fit", done, steps),
        options.learn_more,
        options.probe_units,
    )


def calibrate(options: Options) -> Statistics:
    """Measure a model and write its statistics. Raises CalibrationError, ModelError or StatisticsError."""
    from transformers import AutoConfig, __version__

    out = options.out.resolve()
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK) or out.is_dir():
        raise CalibrationError("out", options.out, "its folder does not exist or cannot be written to")
    documents = read_documents(options.text) if options.text else own_documents()
    options.progress("load", 0, 1)
    try:
        config = models.text_config(AutoConfig.from_pretrained(options.model))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CalibrationError("model", options.model, f"has no readable configuration ({reason})") from error
    directory = Path(options.model)
    name = options.name or (directory.resolve().name if directory.is_dir() else options.model)
    geometry = models.geometry(config, directory if directory.is_dir() else None, name=name)
    network, tokenizer = _load(options, AutoConfig.from_pretrained(options.model))
    options.progress("load", 1, 1)
    pieces = _pieces(documents, tokenizer, config, options)
    means = measure(network, pieces, config, options)
    tensors = {**means.result(), "inv_freq": models.inv_freq(config)[0]}
    selection = None
    if options.learn:
        try:
            selection = _learn(network, pieces, tensors, geometry, models.inv_freq(config)[1], options)
        except CalibrationError as error:
            # The means are worth having without: policies fall back to fixed weights, and the file says so.
            options.notice(f"no weights learned: {error}")
    if selection is not None:
        tensors |= {
            "learned_weights": selection.weights,
            "learned_share": selection.share,
            "learned_probe": selection.probe,
        }
    options.progress("write", 0, 1)
    source = ", ".join(p.name for p in options.text) if options.text else "text of triattn.calibrate"
    stats = save(
        options.out,
        tensors,
        geometry,
        models.identity(config),
        tokens=means.tokens,
        source=source,
        license=options.license,
        created_by=f"triattn {triattn.__version__} calibrate, transformers {__version__}, {network.dtype}",
        learned=selection.note if selection else None,
    )
    options.progress("write", 1, 1)
    return stats
